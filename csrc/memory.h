// Memory and its pages: large outputs on large pages, and memory for the time of a call that a thread uses again.
#pragma once

#include <new>
#include <vector>

#include "subbyte.h"

namespace sb {

// A vector of numbers that begins on a line of the cache, for kernels. Elsewhere each load of a whole register touches
// two lines, and has to wait where what it reads was stored across two lines a moment ago.
template <class T>
struct OnLine {
    using value_type = T;
    static constexpr std::align_val_t kAlign{64};
    OnLine() = default;
    template <class U>
    OnLine(const OnLine<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlign)); }
    void deallocate(T* p, size_t) { ::operator delete(p, kAlign); }
    bool operator==(const OnLine&) const { return true; }
    bool operator!=(const OnLine&) const { return false; }
};
template <class T>
using Lines = std::vector<T, OnLine<T>>;

// Tell the system that [p, p + bytes) is about to be written throughout. Nothing happens to small or used memory.
// A fresh 8 MiB buffer costs 2,048 faults of 4 KiB, more than the pass that fills it.
void will_fill(void* p, i64 bytes);

// What this thread has stored past the caches is seen by others before what it stores from now on.
inline void finish_streams() {
#if SB_X86
    __builtin_ia32_sfence();
#endif
}

// Uninitialized memory for the time of a call. A thread keeps what it had last, up to a bound, for its next calls.
class Scratch {
public:
    explicit Scratch(i64 bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    template <class T>
    T* as() const { return static_cast<T*>(block_.p); }

    struct Block {
        void* p;
        i64 bytes;
    };

private:
    Block block_;
};

}  // namespace sb
