// sb_norm_apply and sb_norm_grad_apply: the element-wise passes of quantized normalization, for any dense layout.
//
// Statistics and parameters may each vary along axes of their own (channels of a batch norm; rows and columns of a
// layer norm): broadcast.h cuts the tensor into pieces over which every operand is one value or one run.
#include <cmath>
#include <cstdlib>
#include <vector>

#include "cpu_features.h"
#include "memory.h"
#include "norm.h"
#include "numerics.h"
#include "pack.h"
#include "parallel.h"

namespace sb {
namespace {

Op<NormPassKernels> apply_op{"norm_apply"}, grad_op{"norm_grad_apply"};
Op<PackKernels> pack_op{"pack_codes"};

constexpr i64 kBlock = 1 << 14;  // elements in a task, a multiple of 8
constexpr i64 kGrain = 1 << 13;  // elements that are worth a second thread

// The distinct axes of a call's operands, each located once for a piece.
class Layout {
public:
    explicit Layout(i64 n) : n_(n) {}

    int add(i64 channels, i64 inner) {
        const Axis axis(channels, inner, n_);
        for (size_t i = 0; i < axes_.size(); ++i)
            if (axes_[i] == axis) return static_cast<int>(i);
        axes_.push_back(axis);
        return static_cast<int>(axes_.size()) - 1;
    }
    const Axis& axis(int i) const { return axes_[static_cast<size_t>(i)]; }

    // at[axis] of the piece that begins at `begin` -> its length
    i64 locate(i64 begin, i64 end, i64* at) const {
        i64 n = end - begin;
        for (size_t i = 0; i < axes_.size(); ++i) {
            const Axis::Position p = axes_[i].position(begin);
            at[i] = p.at;
            n = std::min(n, p.run);
        }
        return n;
    }

private:
    i64 n_;
    std::vector<Axis> axes_;
};

constexpr int kMaxAxes = 5;  // no more than operands

// An operand, the axis that it follows, and a place for one value of it.
template <class T>
struct Field {
    int axis;
    std::vector<T> owned;
    Operand<T> operand;

    Field(Layout& layout, const T* values, i64 channels, i64 inner)
        : axis(layout.add(channels, inner)), operand(values, layout.axis(axis)) {}
    Field(Layout& layout, std::vector<T> values, i64 channels, i64 inner)
        : axis(layout.add(channels, inner)), owned(std::move(values)), operand(owned.data(), layout.axis(axis)) {}
    Field(const Field&) = delete;

    Lane<T> lane(const i64* at, T* buffer) const { return operand.lane(at[axis], buffer); }
};

template <class To, class From>
std::vector<To> converted(const From* v, i64 n) { return std::vector<To>(v, v + n); }

// Deviations beyond 32 bits: the same operations one element at a time.
template <class Code, class T>
void apply_wide(
    const Code* q, Lane<i64> total, Lane<float> factor, Lane<float> gamma, Lane<float> scale, Lane<float> beta,
    i64 count, float high, Narrowing saved, i64 n, T* y, i8* k) {
    for (i64 i = 0; i < n; ++i) {
        const float v = static_cast<float>(count * q[i] - total.p[total.step * i]) * factor.p[factor.step * i];
        const float clamped = v < -high ? -high : v > high ? high : v;
        const i32 t = std::isnan(v) ? 0 : static_cast<i32>(std::lrintf(clamped));
        const i32 rounded = (t + 0x7FFF + ((t >> 16) & 1)) >> 16;
        const float kept = std::rint(static_cast<float>(rounded) * saved.unit);
        k[i] = static_cast<i8>(std::min(std::max(kept, -saved.high), saved.high));
        const i32 by = static_cast<i32>(gamma.p[gamma.step * i]);
        put(y + i, static_cast<float>(rounded * by) * scale.p[scale.step * i] + beta.p[beta.step * i]);
    }
}

// Is |count q - total| < 2^31 for every code q of a byte?
bool fits_in_32_bits(i64 count, const i64* total, i64 n) {
    i64 most = 0;
    for (i64 i = 0; i < n; ++i) most = std::max(most, total[i] < 0 ? -total[i] : total[i]);
    return count <= INT32_MAX && most + 255 * count <= INT32_MAX;
}

}  // namespace

const char* norm_apply(const NormApply& call, int threads) {
    const i64 n = call.n, stat_channels = call.factor.channels, stat_inner = call.factor.inner, count = call.count;
    const auto kernel = apply_op.best();
    if (n == 0) return kernel.name;  // an operand may be empty too
    const i64* total = call.total.p;
    const bool narrow = fits_in_32_bits(count, total, stat_channels);
    Layout layout(n);
    const Field<i32> totals(layout, converted<i32>(total, stat_channels), stat_channels, stat_inner);
    const Field<i64> wide_totals(layout, narrow ? nullptr : total, narrow ? 1 : stat_channels, narrow ? n : stat_inner);
    const Field<float> factors(layout, call.factor.p, stat_channels, stat_inner);
    const Field<float> gammas(
        layout, converted<float>(call.gamma.p, call.gamma.channels), call.gamma.channels, call.gamma.inner);
    const Field<float> scales(layout, call.scale.p, call.scale.channels, call.scale.inner);
    const Field<float> betas(layout, call.beta.p, call.beta.channels, call.beta.inner);
    const float high = static_cast<float>(((1 << (call.bits - 1)) - 1) << 16);
    const Narrowing saved = narrowing(call.bits, call.k ? call.bits : call.saved_bits);
    const PackKernels& pack = *pack_op.best().table;
    will_fill(call.y.p, n * call.y.bytes());
    if (call.k) will_fill(call.k, n);

    parallel(useful_threads(threads, n, kGrain), ceil_div(n, kBlock), [&](i64 task, int) {
        alignas(64) i8 tile[kBlock];
        i64 at[kMaxAxes + 1];
        i32 total_one[kLanes];
        i64 wide_one[kLanes];
        float factor_one[kLanes], gamma_one[kLanes], scale_one[kLanes], beta_one[kLanes];
        const i64 first = task * kBlock, stop = std::min(first + kBlock, n);
        i8* ks = call.k ? call.k + first : tile;
        for (i64 i = first, piece; i < stop; i += piece) {
            piece = layout.locate(i, stop, at);
            const auto f = factors.lane(at, factor_one), s = scales.lane(at, scale_one), b = betas.lane(at, beta_one);
            const auto m = gammas.lane(at, gamma_one);
            const auto* codes = static_cast<const i8*>(call.q) + i;
            const auto* bytes = reinterpret_cast<const u8*>(codes);
            const FloatsOut y = call.y + i;
            i8* k = ks + (i - first);
            if (!narrow) {
                const auto w = wide_totals.lane(at, wide_one);
                y.visit([&](auto* to) {
                    if (call.is_signed)
                        apply_wide(codes, w, f, m, s, b, count, high, saved, piece, to, k);
                    else
                        apply_wide(bytes, w, f, m, s, b, count, high, saved, piece, to, k);
                });
                continue;
            }
            const auto t = totals.lane(at, total_one);
            const i32 n32 = static_cast<i32>(count);
            if (call.is_signed)
                kernel.table->apply_signed(codes, t, f, m, s, b, n32, high, saved, piece, y, k);
            else
                kernel.table->apply_unsigned(bytes, t, f, m, s, b, n32, high, saved, piece, y, k);
        }
        if (!call.k) {
            const auto* codes = reinterpret_cast<const u8*>(tile);
            pack_run(pack, codes, stop - first, call.saved_bits, call.saved + first / 8 * call.saved_bits);
        }
    });
    return narrow ? kernel.name : "norm_apply_int64";
}

}  // namespace sb

// Operands: (values, channels, inner), as in broadcast.h. total has factor's axis.
SB_EXPORT const char* sb_norm_apply(
    const void* q, int is_signed, sb::i64 n, const sb::i64* total, const float* factor, sb::i64 stat_channels,
    sb::i64 stat_inner, const sb::i8* gamma, sb::i64 gamma_channels, sb::i64 gamma_inner, const float* scale,
    sb::i64 scale_channels, sb::i64 scale_inner, const float* beta, sb::i64 beta_channels, sb::i64 beta_inner,
    sb::i64 count, int bits, float* y, sb::i8* k, int threads) {
    const sb::NormApply call{
        q, is_signed != 0, n, {total, stat_channels, stat_inner}, {factor, stat_channels, stat_inner},
        {gamma, gamma_channels, gamma_inner}, {scale, scale_channels, scale_inner}, {beta, beta_channels, beta_inner},
        count, bits, y, k, nullptr, 0};
    return sb::norm_apply(call, threads);
}

SB_EXPORT const char* sb_norm_grad_apply(
    const sb::i8* g, const sb::i8* k, sb::i64 n, const sb::i8* gamma, sb::i64 gamma_channels, sb::i64 gamma_inner,
    const float* a, sb::i64 a_channels, sb::i64 a_inner, const float* u, sb::i64 u_channels, sb::i64 u_inner,
    const float* v, sb::i64 v_channels, sb::i64 v_inner, const float* t, sb::i64 t_channels, sb::i64 t_inner, int l2,
    void* to, int half, int threads) {
    using namespace sb;
    const FloatsOut dx(to, half);
    if (n == 0) return grad_op.best().name;
    Layout layout(n);
    const Field<i32> gammas(layout, converted<i32>(gamma, gamma_channels), gamma_channels, gamma_inner);
    const Field<float> as(layout, a, a_channels, a_inner), us(layout, u, u_channels, u_inner);
    const Field<float> vs(layout, v, v_channels, v_inner), ts(layout, t, t_channels, t_inner);
    const auto kernel = grad_op.best();
    will_fill(to, n * dx.bytes());

    parallel(useful_threads(threads, n, kGrain), ceil_div(n, kBlock), [&](i64 task, int) {
        i64 at[kMaxAxes];
        i32 gamma_one[kLanes];
        float a_one[kLanes], u_one[kLanes], v_one[kLanes], t_one[kLanes];
        const i64 stop = std::min((task + 1) * kBlock, n);
        for (i64 i = task * kBlock, piece; i < stop; i += piece) {
            piece = layout.locate(i, stop, at);
            kernel.table->grad_apply(
                g + i, k + i, gammas.lane(at, gamma_one), as.lane(at, a_one), us.lane(at, u_one), vs.lane(at, v_one),
                ts.lane(at, t_one), l2, piece, dx + i);
        }
    });
    return kernel.name;
}
