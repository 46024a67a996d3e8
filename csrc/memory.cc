// Advice on pages, and scratch memory. See memory.h.
#include "memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sb {
namespace {

constexpr i64 kMostKept = 64 << 20;  // bytes of a block that is kept
constexpr int kBlocks = 2;           // as many as one call has at a time

struct Kept {
    Scratch::Block blocks[kBlocks] = {};
    ~Kept() {
        for (const auto& b : blocks) std::free(b.p);
    }
};
thread_local Kept kept;

}  // namespace

void will_fill(void* p, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr u64 page = 2 << 20, least = 2 * page;  // at least one whole large page lies inside, wherever it begins
    if (static_cast<u64>(bytes) < least) return;
    const u64 begin = round_up(reinterpret_cast<u64>(p), page), end = (reinterpret_cast<u64>(p) + bytes) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: a refusal does no harm
#else
    (void)p, (void)bytes;
#endif
}

Scratch::Scratch(i64 bytes) : block_{nullptr, 0} {
    for (Block& b : kept.blocks)
        if (b.bytes > block_.bytes) block_ = b;
    for (Block& b : kept.blocks)
        if (b.p == block_.p) b = {};
    if (block_.bytes >= bytes) return;
    std::free(block_.p);
    block_ = {std::aligned_alloc(64, round_up<size_t>(static_cast<size_t>(bytes), 64)), bytes};
    if (!block_.p) throw std::bad_alloc();
    will_fill(block_.p, bytes);
}

Scratch::~Scratch() {
    if (block_.bytes <= kMostKept)
        for (Block& b : kept.blocks)
            if (!b.p) {
                b = block_;
                return;
            }
    std::free(block_.p);
}

}  // namespace sb
