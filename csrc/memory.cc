// Advice on pages. See memory.h.
#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sb {

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

}  // namespace sb
