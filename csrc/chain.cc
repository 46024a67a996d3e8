// sb_norm_relu and sb_norm_relu_codes: the forward passes of a fused chain. The backward ones: chain_grad.cc.
//
// Tiles of memory, as small as the L1 cache: a kernel writes k and the mask of one as bytes, and those are packed while
// they lie there. Tiles begin at multiples of 8 elements, so that each has bytes of its own in the packed tensors.
#include "chain.h"

#include <vector>

#include "broadcast.h"
#include "chain_values.h"
#include "cpu_features.h"
#include "memory.h"
#include "numerics.h"
#include "pack.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ChainKernels> relu_op{"norm_relu"}, codes_op{"norm_relu_codes"};
Op<PackKernels> pack_op{"pack_codes"};

constexpr i64 kTile = 4096;      // elements, at most
constexpr i64 kBlock = 1 << 15;  // elements in a task, about
constexpr i64 kGrain = 1 << 13;  // elements that are worth a second thread

// tile(begin, end, k, mask, worker) fills buffers; k, and with `masks` the mask too, is packed afterwards
template <class Tile>
void packed_tiles(const Strips& strips, i64 n, int saved_bits, u8* saved, u8* masks, int workers, const Tile& tile) {
    const PackKernels& pack = *pack_op.best().table;
    const i64 most = strips.tile(kTile), group = std::max<i64>(1, kBlock / most);
    parallel(workers, ceil_div(n, most * group), [&](i64 task, int worker) {
        alignas(64) u8 k[kTile], mask[kTile];
        const i64 stop = std::min((task + 1) * group * most, n);
        for (i64 begin = task * group * most; begin < stop; begin += most) {
            const i64 end = std::min(begin + most, stop);
            tile(begin, end, reinterpret_cast<i8*>(k), mask, worker);
            pack_run(pack, k, end - begin, saved_bits, saved + begin / 8 * saved_bits);
            if (masks) pack_run(pack, mask, end - begin, 1, masks + begin / 8);
        }
    });
}

}  // namespace
}  // namespace sb

// q: outer * channels * inner codes. Operands: values and how many, one or one for each channel.
//   other   floats in q's memory order, or nullptr; z: half: both are bfloat16
//   masks   nullptr: no ReLU
//   r       the range of z, one number
SB_EXPORT const char* sb_norm_relu(
    const sb::i8* q, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i64* total, sb::i64 totals,
    const float* factor, sb::i64 factors, const sb::i8* gamma, sb::i64 gammas, const float* scale, sb::i64 scales,
    const float* beta, sb::i64 betas, sb::i64 count, int bits, int saved_bits, const void* other, void* z, int half,
    float* r, sb::u8* saved, sb::u8* masks, int threads) {
    using namespace sb;
    if (!fits_in_32_bits(count, total, totals)) return nullptr;
    const auto kernel = relu_op.best();
    const Shape shape{outer, channels, inner};
    const Strips strips(shape);
    const Norm norm(
        strips, {total, totals}, {factor, factors}, {gamma, gammas}, {scale, scales}, {beta, betas}, count, bits,
        saved_bits);
    const i64 n = shape.size();
    const int workers = useful_threads(threads, n, kGrain);
    PerWorker<i32> maxima(kLanes, workers, 0);
    const Floats more(other, half);
    const FloatsOut to(z, half);
    will_fill(z, n * to.bytes());
    packed_tiles(strips, n, saved_bits, saved, masks, workers, [&](i64 begin, i64 end, i8* k, u8* mask, int worker) {
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.table->norm_relu(
                q + at, norm.operands, slot, more ? more + at : more, rows, columns, to + at, k + (at - begin),
                masks ? mask + (at - begin) : nullptr, maxima.of(worker));
        });
    });
    i32 most = 0;
    for (int w = 0; w < workers; ++w) most = std::max(most, *std::max_element(maxima.of(w), maxima.of(w) + kLanes));
    *r = range_from_bits(most);
    return kernel.name;
}

// r: the range of the codes' floats, one number or one for each channel; top: their largest code;
// packed: next_bits a code. half: ReLU(y) is rounded to bfloat16 before it becomes codes.
SB_EXPORT const char* sb_norm_relu_codes(
    const sb::i8* q, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i64* total, sb::i64 totals,
    const float* factor, sb::i64 factors, const sb::i8* gamma, sb::i64 gammas, const float* scale, sb::i64 scales,
    const float* beta, sb::i64 betas, sb::i64 count, int bits, int saved_bits, const float* r, sb::i64 ranges,
    int next_bits, int top, int half, sb::i8* codes, sb::u8* packed, sb::u8* saved, sb::u8* masks, int threads) {
    using namespace sb;
    if (!fits_in_32_bits(count, total, totals)) return nullptr;
    const auto kernel = codes_op.best();
    const PackKernels& pack = *pack_op.best().table;
    const Shape shape{outer, channels, inner};
    const Strips strips(shape);
    const Norm norm(
        strips, {total, totals}, {factor, factors}, {gamma, gammas}, {scale, scales}, {beta, betas}, count, bits,
        saved_bits);
    const float high = static_cast<float>(top) * kOne;
    const Lines<float> inv = inverse_steps(strips, {r, ranges}, {nullptr, 0}, high);
    const i64 n = shape.size();
    will_fill(codes, n);
    const int workers = useful_threads(threads, n, kGrain);
    packed_tiles(strips, n, saved_bits, saved, masks, workers, [&](i64 begin, i64 end, i8* k, u8* mask, int) {
        strips.visit(begin, end, [&](i64 at, i64 rows, i64 columns, i64 slot) {
            kernel.table->norm_relu_codes(
                q + at, norm.operands, slot, inv.data(), high, half, rows, columns, codes + at, k + (at - begin),
                mask + (at - begin));
        });
        pack_run(
            pack, reinterpret_cast<const u8*>(codes) + begin, end - begin, next_bits, packed + begin / 8 * next_bits);
    });
    return kernel.name;
}
