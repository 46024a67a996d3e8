// sb_pack_codes and sb_unpack_codes: groups of 8 codes in tasks, and a last group that may be shorter.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "cpu_features.h"
#include "parallel.h"

namespace sb {
namespace {

Op<PackKernels> pack_op{"pack_codes"}, unpack_op{"unpack_codes"};

constexpr i64 kBlock = 1 << 13;  // groups in a task: 64 KiB of codes
constexpr i64 kGrain = 1 << 13;  // groups that are worth a second thread

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_pack_codes(const sb::u8* codes, sb::i64 n, int bits, sb::u8* packed, int threads) {
    using namespace sb;
    const auto kernel = pack_op.best();
    const i64 groups = n / 8, rest = n % 8;
    parallel(useful_threads(threads, groups, kGrain), ceil_div(groups, kBlock), [&](i64 task, int) {
        const i64 begin = task * kBlock, count = std::min(kBlock, groups - begin);
        kernel.table->pack(codes + 8 * begin, count, bits, packed + bits * begin);
    });
    if (rest) {
        u8 last[8] = {}, dense[8];
        std::memcpy(last, codes + 8 * groups, static_cast<size_t>(rest));
        kernel.table->pack(last, 1, bits, dense);
        std::memcpy(packed + bits * groups, dense, static_cast<size_t>(ceil_div<i64>(rest * bits, 8)));
    }
    return kernel.name;
}

SB_EXPORT const char* sb_unpack_codes(
    const sb::u8* packed, sb::i64 n, int bits, int is_signed, sb::u8* codes, int threads) {
    using namespace sb;
    const auto kernel = unpack_op.best();
    const i64 groups = n / 8, rest = n % 8;
    parallel(useful_threads(threads, groups, kGrain), ceil_div(groups, kBlock), [&](i64 task, int) {
        const i64 begin = task * kBlock, count = std::min(kBlock, groups - begin);
        kernel.table->unpack(packed + bits * begin, count, bits, is_signed, codes + 8 * begin);
    });
    if (rest) {
        u8 dense[8] = {}, last[8];
        std::memcpy(dense, packed + bits * groups, static_cast<size_t>(ceil_div<i64>(rest * bits, 8)));
        kernel.table->unpack(dense, 1, bits, is_signed, last);
        std::memcpy(codes + 8 * groups, last, static_cast<size_t>(rest));
    }
    return kernel.name;
}
