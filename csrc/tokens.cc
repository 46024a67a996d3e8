// sb_quantize_tokens and sb_norm_grad_tokens (ops/tokens.py, ops/chain.py): codes whose step belongs to a token, an index
// of all axes but that of the channels. The channels of a token lie together: the tensor is a matrix, a row for each.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "chain.h"
#include "chain_values.h"
#include "cpu_features.h"
#include "draw.h"
#include "memory.h"
#include "numerics.h"
#include "pack.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ChainKernels> tokens_op{"quantize_tokens"}, grad_op{"norm_grad_tokens"};
Op<PackKernels> unpack_op{"unpack_codes"};
Op<QuantizeKernels> draw_op{"quantize_sr"};

constexpr i64 kGrain = 1 << 14;  // elements that are worth a second thread

TokenSteps token_steps(float r, int code_bits, bool with_sign, int top) {
    TokenSteps s{};
    s.top = top;
    s.high = static_cast<float>((1 << (code_bits - with_sign)) - 1) * kOne;
    s.low = with_sign ? -s.high : 0.0f;
    const float inv = inverse_step(r, s.high);
    for (int e = 0; e <= top; ++e) {
        const float limit = std::ldexp(r, -e);
        s.limit[e] = -1;
        if (limit >= kRangeFloor) std::memcpy(&s.limit[e], &limit, sizeof limit);
        s.inv[e] = inv * power_of_two(static_cast<u8>(e));
    }
    return s;
}

// Elements of a tile: whole tokens, and whole calls of the random bits.
i64 tile_of(i64 channels) { return round_up<i64>(std::max<i64>(Draws::kTile / channels, 1), 4) * channels; }

}  // namespace
}  // namespace sb

// x: rows * channels floats, r: their range; order and stream: draw.h, nullptr: half to even -> codes 2^(top - e), which
// are bytes without a sign unless with_sign.
SB_EXPORT const char* sb_quantize_tokens(
    const float* x, sb::i64 rows, sb::i64 channels, const float* r, const sb::i64* stream, sb::i64 order_batch,
    sb::i64 order_channels, sb::i64 order_pixels, int code_bits, int with_sign, int top, sb::i8* codes, int threads) {
    using namespace sb;
    const auto kernel = tokens_op.best();
    const Order order{order_batch, order_channels, order_pixels};
    const i64 n = rows * channels;
    if (stream && !Draws::covers(n, order)) return nullptr;
    const TokenSteps steps = token_steps(*r, code_bits, with_sign, top);
    const Draws draws(*draw_op.best().table, stream, n, order, tile_of(channels));
    will_fill(codes, n);
    draws.each(useful_threads(threads, n, kGrain), [&](i64 begin, i64 end, const u16* bits, int) {
        kernel.table->token_codes(x + begin, (end - begin) / channels, channels, steps, bits, codes + begin);
    });
    return kernel.name;
}

// The same of dx of a norm. g, saved and the norm's operands: sb_norm_grad_codes, with channels last in memory.
SB_EXPORT const char* sb_norm_grad_tokens(
    const sb::i8* g, sb::i64 rows, sb::i64 channels, const sb::u8* saved, int saved_bits, const sb::i8* gamma,
    sb::i64 gammas, const float* a, sb::i64 as, const float* u, sb::i64 us, const float* v, sb::i64 vs, const float* t,
    sb::i64 ts, const float* r, const sb::i64* stream, sb::i64 order_batch, sb::i64 order_channels,
    sb::i64 order_pixels, int code_bits, int top, sb::i8* codes, int threads) {
    using namespace sb;
    const auto kernel = grad_op.best();
    const Order order{order_batch, order_channels, order_pixels};
    const i64 n = rows * channels;
    if (stream && !Draws::covers(n, order)) return nullptr;
    const Strips strips({rows, channels, 1});
    const NormGrad norm(strips, {gamma, gammas}, {a, as}, {u, us}, {v, vs}, {t, ts});
    const TokenSteps steps = token_steps(*r, code_bits, true, top);
    const Draws draws(*draw_op.best().table, stream, n, order, tile_of(channels));
    will_fill(codes, n);
    const int workers = useful_threads(threads, n, kGrain);
    std::vector<Unpacked> ks = Unpacked::for_workers(workers, *unpack_op.best().table, saved, saved_bits, draws.largest());
    PerWorker<float> floats(draws.largest(), workers, 0.0f);
    draws.each(workers, [&](i64 begin, i64 end, const u16* bits, int w) {
        const i8* k = ks[w].span(begin, end);
        float* dx = floats.of(w);
        strips.visit(begin, end, [&](i64 at, i64 tile_rows, i64 columns, i64 slot) {
            kernel.table->norm_grad_floats(
                g + at, k + (at - begin), norm.operands, slot, tile_rows, columns, dx + (at - begin));
        });
        kernel.table->token_codes(dx, (end - begin) / channels, channels, steps, bits, codes + begin);
    });
    return kernel.name;
}
