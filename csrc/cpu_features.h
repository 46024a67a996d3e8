// Which instruction sets this machine has, and which kernel of an op that makes the best one.
//
// A kernel file registers what it holds under (op, ISA); nothing else in the library lists them:
//     static const sb::Register r{{"amax"}, sb::Isa::avx2, "", &table};
// and the entry point of the op asks for the best one that the machine, or a forced ISA, admits:
//     static sb::Op<AmaxKernels> op{"amax"};   ...   const auto kernel = op.best();   kernel.table->run(...)
// An ISA without a kernel of its own takes the next lower one.
#pragma once

#include <atomic>

#include "subbyte.h"

namespace sb {

// In rising order of preference, those of AArch64 before those of x86-64. To add one: a word here, a row in
// cpu_features.cc, and kernel files. docs/kernels.md
enum class Isa : int { portable, neon, neondot, avx2, avxvnni, avx512vnni };
constexpr int kIsaCount = 6;

// One table of an ISA for one or several ops. A kernel is named for its op, its operands and tile where they are given,
// and its ISA: conv2d_s16s16s32_6x16_avx2, amax_avx2.
struct Register {
    template <int ops>
    Register(const char* const (&op)[ops], Isa isa, const char* operands, const void* table) {
        for (const char* each : op) add(each, isa, operands, table);
    }

private:
    static void add(const char* op, Isa isa, const char* operands, const void* table);
};

struct Kernel {
    const char* name;
    const void* table;
};

// The best kernel of `op`; {nullptr, nullptr} when none is registered. It stays where it is.
const Kernel& best_kernel(const char* op);

// Changes whenever another ISA is forced.
int isa_generation();

template <class Table>
class Op {
public:
    struct Best {
        const char* name;
        const Table* table;
    };
    constexpr explicit Op(const char* name) : name_(name) {}
    // Threads may call this at once: one that sees the generation sees the kernel that was stored before it.
    Best best() {
        const int now = isa_generation();
        if (generation_.load(std::memory_order_acquire) != now) {
            best_.store(&best_kernel(name_), std::memory_order_relaxed);
            generation_.store(now, std::memory_order_release);
        }
        const Kernel& kernel = *best_.load(std::memory_order_relaxed);
        return {kernel.name, static_cast<const Table*>(kernel.table)};
    }

private:
    const char* name_;
    std::atomic<int> generation_{-1};
    std::atomic<const Kernel*> best_{nullptr};
};

}  // namespace sb
