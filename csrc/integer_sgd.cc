// sb_int_sgd: one update of a Parameter by IntegerSGD. NORMATIVE text: ops/integer_sgd.py.
//
// Every number is codes times one power of two, and each of these follows from those of w, g and momentum, but for two:
// what momentum and weights are rounded to depends on the largest of their sums. So there are three passes over the
// operands behind those that find the exponents of w and g, and each of them computes anew the sums that it needs: no
// sum is ever in memory.
#include "integer_sgd.h"

#include <cstring>

#include "cpu_features.h"
#include "integer_pass.h"
#include "quantize.h"

namespace sb {
namespace {

Op<IntegerSgdKernels> op{"int_sgd"};
Op<IntegerPassKernels> pass_op{"integer_pass"};
Op<QuantizeKernels> random_op{"quantize_sr"};

constexpr int kFactorBits = 8, kSumBits = 50, kEmpty = -(1 << 8);

// The scale of a number: codes 2^e of a signed width.
struct Scale {
    i64 e;
    int bits;
};

// From one scale to another, on which the codes have kSumBits at most.
Align align(Scale from, i64 e) {
    const i64 right = e - from.e;
    return {static_cast<int>(std::max<i64>(-right, 0)), static_cast<int>(std::clamp<i64>(right, 0, kSumBits + 2))};
}

// The scale of a sum, and how its terms get there.
Scale sum(Scale a, Scale b, Align* to_a, Align* to_b) {
    const i64 e = std::max(a.e + a.bits, b.e + b.bits) - (kSumBits - 1);
    *to_a = align(a, e), *to_b = align(b, e);
    return {e, kSumBits};
}

// No sum: the first term as it is, without the second.
Scale alone(Scale a, Align* to_a, Align* to_b) {
    *to_a = {}, *to_b = {0, 0, 0};
    return a;
}

// Stochastic, by the finest exponent that holds the largest of the sums.
Scale rounded(i64 largest, i64 e, Cut* cut) {
    const int drop = shift_below(largest, kCodeTop);
    *cut = {std::max(drop - 16, 0), std::min(drop, 16)};
    const bool empty = largest == 0 && e + drop < kNotFinite >> 1;
    return {empty ? kEmpty : e + drop, kCodeBits};
}

}  // namespace
}  // namespace sb

// w, g: n floats, momentum: n integers times 2^*momentum_e; rate, decay: exponents, where moves and decays say so;
// stream: 2 n random numbers, the momentum's first -> w and momentum, in place, and momentum's exponent
SB_EXPORT const char* sb_int_sgd(
    float* w, const float* g, sb::i16* momentum, sb::i32* momentum_e, sb::i64 n, const sb::i64* stream, int moves,
    int rate, int factor, int decays, int decay, int nesterov, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const auto random = random_op.best();
    const IntegerSgdKernels& k = *kernel.table;
    const IntegerPassKernels& pass = *pass_op.best().table;
    const auto most = [&](const auto& block) { return largest_of(threads, n, 0, block); };
    // random numbers first, first + 1 .. of the stream
    struct Drawn {
        u16 numbers[kScalarBlock + 8 + kRandomSlack];
        const u16* at;
    };
    const auto draw = [&](Drawn& drawn, i64 first, i64 count) {
        const i64 skipped = first % 4;
        random.table->random_run(
            static_cast<u64>(*stream), static_cast<u64>(first / 4), ceil_div<i64>(skipped + count, 4), drawn.numbers);
        drawn.at = drawn.numbers + skipped;
    };

    SgdStep s{};
    const auto exponent = [&](const float* x) {
        return static_cast<i32>(largest_of(threads, n, 1 - kBias, [&](i64 i, i64 count, i64 best) {
            return i64{pass.exponent(x + i, count, static_cast<i32>(best))};
        }));
    };
    s.w_e = exponent(w), s.g_e = exponent(g);
    s.factor = factor, s.v_factor = nesterov ? factor : 1;
    const Scale in_w{s.w_e, kMantissa + 1}, in_g{s.g_e, kMantissa + 1};
    const Scale slowed{i64{*momentum_e} - kFactorBits, kCodeBits + kFactorBits};
    const Scale in_d = decays ? sum(in_g, {s.w_e - i64{decay}, kMantissa + 1}, &s.g_in_d, &s.w_in_d)
                              : alone(in_g, &s.g_in_d, &s.w_in_d);
    const Scale in_sum = sum(in_d, slowed, &s.d_in_sum, &s.m_in_sum);
    const i64 largest = most([&](i64 i, i64 count, i64 best) {
        return k.sums(s, w + i, g + i, momentum + i, count, best);
    });
    const Scale in_v = rounded(largest, in_sum.e, &s.to_v);

    const Scale ahead{in_v.e - kFactorBits, kCodeBits + kFactorBits};
    const Scale in_u = nesterov ? sum(in_d, ahead, &s.d_in_u, &s.v_in_u) : alone(in_v, &s.v_in_u, &s.d_in_u);
    const Scale in_new = moves ? sum(in_w, {in_u.e - rate, in_u.bits}, &s.w_in_new, &s.u_in_new)
                               : alone(in_w, &s.w_in_new, &s.u_in_new);
    std::vector<i16> v(static_cast<size_t>(n));
    const i64 farthest = most([&](i64 i, i64 count, i64 best) {
        Drawn drawn;
        draw(drawn, i, count);
        return k.momentum(s, w + i, g + i, momentum + i, drawn.at, count, best, v.data() + i);
    });
    s.new_scale = FloatScale(rounded(farthest, in_new.e, &s.to_w).e);
    for_blocks(threads, n, [&](i64 i, i64 count) {
        Drawn drawn;
        draw(drawn, n + i, count);
        k.weights(s, g + i, v.data() + i, drawn.at, count, w + i);
    });
    std::memcpy(momentum, v.data(), v.size() * sizeof(i16));
    *momentum_e = static_cast<i32>(in_v.e);
    return kernel.name;
}
