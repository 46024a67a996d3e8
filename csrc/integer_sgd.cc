// sb_int_sgd: one update of a Parameter by IntegerSGD. NORMATIVE text: ops/integer_sgd.py.
//
// Every number is codes times one power of two, and each of these follows from those of w, g and momentum, but for two:
// what momentum and weights are rounded to depends on the largest of their sums. So there are three passes over the
// operands behind those that find the exponents of w and g, and each of them computes anew the sums that it needs: no
// sum is ever in memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "integer_scalars.h"
#include "parallel.h"
#include "quantize.h"

namespace sb {
namespace {

Op<QuantizeKernels> random_op{"quantize_sr"};

constexpr int kCodeBits = 16, kFactorBits = 8, kSumBits = 50, kEmpty = -(1 << 8);
constexpr i64 kTop = (1 << (kCodeBits - 1)) - 1;

// The scale of a number: codes 2^e of a signed width.
struct Scale {
    i64 e;
    int bits;
};

// The sum of two numbers in kSumBits.
struct Sum {
    Shift a, b;
    Scale scale{0, kSumBits};

    Sum() = default;
    Sum(Scale x, Scale y) {
        scale.e = std::max(x.e + x.bits, y.e + y.bits) - (kSumBits - 1);
        a = Shift(scale.e - x.e), b = Shift(scale.e - y.e);
    }
    i64 operator()(i64 x, i64 y) const { return a(x) + b(y); }
};

// Sums on their way to kCodeBits: stochastic, by the finest exponent that holds the largest of them.
struct Rounding {
    int first, rest;  // what is cut off before the 16 bits that decide, and with them
    Scale scale;

    Rounding(i64 largest, i64 e) {
        const int drop = shift_below(largest, kTop);
        first = std::max(drop - 16, 0), rest = drop - first;
        const bool empty = largest == 0 && e + drop < kNotFinite >> 1;
        scale = {empty ? kEmpty : e + drop, kCodeBits};
    }
    i64 operator()(i64 v, u16 r) const {
        return std::clamp(((v >> first) + (r >> (16 - rest))) >> rest, -kTop, kTop);
    }
};

}  // namespace
}  // namespace sb

// w, g: n floats, momentum: n integers times 2^*momentum_e; rate, decay: exponents, where moves and decays say so;
// stream: 2 n random numbers, the momentum's first -> w and momentum, in place, and momentum's exponent
SB_EXPORT const char* sb_int_sgd(
    float* w, const float* g, sb::i16* momentum, sb::i32* momentum_e, sb::i64 n, const sb::i64* stream, int moves,
    int rate, int factor, int decays, int decay, int nesterov, int threads) {
    using namespace sb;
    const int workers = useful_threads(threads, n, kScalarGrain);
    std::vector<u16> random(static_cast<size_t>(2 * n + kRandomSlack));
    random_op.best().table->random_run(static_cast<u64>(*stream), 0, ceil_div<i64>(2 * n, 4), random.data());

    const auto top = [&](const float* x) {
        return static_cast<i32>(largest_of(workers, n, 1 - kBias, [&](i64 i) { return Float(x[i]).e; }));
    };
    const i32 w_e = top(w), g_e = top(g);
    const Scale in_w{w_e, kMantissa + 1}, in_g{g_e, kMantissa + 1}, decayed{w_e - decay, kMantissa + 1};
    const Scale slowed{i64{*momentum_e} - kFactorBits, kCodeBits + kFactorBits};
    const Sum decaying = decays ? Sum(in_g, decayed) : Sum();
    const Scale in_d = decays ? decaying.scale : in_g;
    const Sum averaging(in_d, slowed);
    const auto d = [&](i64 i) {
        const i64 code = code_of(g[i], g_e);
        return decays ? decaying(code, code_of(w[i], w_e)) : code;
    };
    const auto sum = [&](i64 i) { return averaging(d(i), i64{momentum[i]} * factor); };
    const Rounding to_v(largest_of(workers, n, 0, [&](i64 i) { return std::abs(sum(i)); }), averaging.scale.e);
    std::vector<i16> v(static_cast<size_t>(n));

    const Sum ahead = nesterov ? Sum(in_d, {to_v.scale.e - kFactorBits, kCodeBits + kFactorBits}) : Sum();
    const Scale in_u = nesterov ? ahead.scale : to_v.scale;
    const Sum moving = moves ? Sum(in_w, {in_u.e - rate, in_u.bits}) : Sum();
    const auto moved = [&](i64 i) {
        const i64 code = code_of(w[i], w_e), step = v[static_cast<size_t>(i)];
        return moves ? moving(code, -(nesterov ? ahead(d(i), step * factor) : step)) : code;
    };
    const auto most = largest_of(workers, n, 0, [&](i64 i) {
        v[static_cast<size_t>(i)] = static_cast<i16>(to_v(sum(i), random[static_cast<size_t>(i)]));
        return std::abs(moved(i));
    });
    const Rounding to_w(most, moves ? moving.scale.e : w_e);
    for_each(workers, n, [&](i64 i) {
        w[i] = float_of(to_w(moved(i), random[static_cast<size_t>(n + i)]), to_w.scale.e);
    });
    std::memcpy(momentum, v.data(), v.size() * sizeof(i16));
    *momentum_e = static_cast<i32>(to_v.scale.e);
    return "int_sgd_portable";
}
