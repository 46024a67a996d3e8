// sb_pack_codes and sb_unpack_codes: groups of 8 codes, and a last group that may be shorter.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "cpu_features.h"
#include "parallel.h"

namespace sb {
namespace {

Op<PackKernels> pack_op{"pack_codes"}, unpack_op{"unpack_codes"};

constexpr i64 kBlock = 1 << 16;  // codes in a task
constexpr i64 kGrain = 1 << 16;  // codes that are worth a second thread

}  // namespace

void pack_run(const PackKernels& kernel, const u8* codes, i64 n, int bits, u8* packed) {
    const i64 groups = n / 8, rest = n % 8;
    kernel.pack(codes, groups, bits, packed);
    if (!rest) return;
    u8 last[8] = {}, dense[8];
    std::memcpy(last, codes + 8 * groups, static_cast<size_t>(rest));
    kernel.pack(last, 1, bits, dense);
    std::memcpy(packed + bits * groups, dense, static_cast<size_t>(packed_bytes(rest, bits)));
}

void unpack_run(const PackKernels& kernel, const u8* packed, i64 n, int bits, bool is_signed, u8* codes) {
    const i64 groups = n / 8, rest = n % 8;
    kernel.unpack(packed, groups, bits, is_signed, codes);
    if (!rest) return;
    u8 dense[8] = {}, last[8];
    std::memcpy(dense, packed + bits * groups, static_cast<size_t>(packed_bytes(rest, bits)));
    kernel.unpack(dense, 1, bits, is_signed, last);
    std::memcpy(codes + 8 * groups, last, static_cast<size_t>(rest));
}

}  // namespace sb

SB_EXPORT const char* sb_pack_codes(const sb::u8* codes, sb::i64 n, int bits, sb::u8* packed, int threads) {
    using namespace sb;
    const auto kernel = pack_op.best();
    parallel(useful_threads(threads, n, kGrain), ceil_div(n, kBlock), [&](i64 task, int) {
        const i64 begin = task * kBlock;
        pack_run(*kernel.table, codes + begin, std::min(kBlock, n - begin), bits, packed + begin / 8 * bits);
    });
    return kernel.name;
}

SB_EXPORT const char* sb_unpack_codes(
    const sb::u8* packed, sb::i64 n, int bits, int is_signed, sb::u8* codes, int threads) {
    using namespace sb;
    const auto kernel = unpack_op.best();
    parallel(useful_threads(threads, n, kGrain), ceil_div(n, kBlock), [&](i64 task, int) {
        const i64 begin = task * kBlock;
        unpack_run(
            *kernel.table, packed + begin / 8 * bits, std::min(kBlock, n - begin), bits, is_signed, codes + begin);
    });
    return kernel.name;
}
