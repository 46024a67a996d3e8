// The passes of ops/tokens.py and, as they stand in a chain, sb_norm_relu_tokens and sb_norm_grad_tokens: codes whose
// step belongs to a token, an index of all axes but that of the channels. The channels of a token lie together: the
// tensor is a matrix, a row for each. A block of weights is a token of theirs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "broadcast.h"
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

Op<ChainKernels> tokens_op{"quantize_tokens"}, blocks_op{"quantize_blocks"};
Op<ChainKernels> relu_op{"norm_relu_tokens"}, grad_op{"norm_grad_tokens"};
Op<PackKernels> pack_op{"pack_codes"}, unpack_op{"unpack_codes"};
Op<PackKernels> pack_tokens_op{"pack_tokens"}, unpack_tokens_op{"unpack_tokens"};
Op<QuantizeKernels> draw_op{"quantize_sr"};

constexpr i64 kGrain = 1 << 14;       // elements that are worth a second thread
constexpr i64 kPackedTile = 1 << 12;  // elements of a tile that is packed, about
constexpr i64 kTurnedTile = 1 << 13;  // elements of a tile that is brought into another order, about
constexpr i64 kMostTurned = 1 << 16;  // of them where no fewer are whole blocks

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

// Tokens of a tile whose codes are packed: a multiple of 8 begins at a byte whatever the width.
i64 packed_tokens(i64 channels) { return std::max<i64>(kPackedTile / channels / 8, 1) * 8; }

// Eight bytes at a time: what a shift moves from one byte into its neighbour is masked off.
constexpr u64 kEach = 0x0101010101010101;

void shift_right(const u8* from, i64 n, int by, u8* to) {
    const u64 mask = kEach * (0xFFu >> by);
    i64 i = 0;
    for (u64 word; i + 8 <= n; i += 8) {
        std::memcpy(&word, from + i, 8);
        word = (word >> by) & mask;
        std::memcpy(to + i, &word, 8);
    }
    for (; i < n; ++i) to[i] = static_cast<u8>(from[i] >> by);
}

void shift_left(u8* codes, i64 n, int by) {
    const u64 mask = kEach * ((0xFFu << by) & 0xFF);
    i64 i = 0;
    for (u64 word; i + 8 <= n; i += 8) {
        std::memcpy(&word, codes + i, 8);
        word = (word << by) & mask;
        std::memcpy(codes + i, &word, 8);
    }
    for (; i < n; ++i) codes[i] = static_cast<u8>(codes[i] << by);
}

// The bits that are set in any of n bytes, in the lowest byte.
u64 bits_of(const u8* codes, i64 n) {
    u64 any = 0;
    i64 i = 0;
    for (u64 word; i + 8 <= n; i += 8) {
        std::memcpy(&word, codes + i, 8);
        any |= word;
    }
    for (; i < n; ++i) any |= codes[i];
    any |= any >> 32;
    any |= any >> 16;
    return any | any >> 8;
}

// Bits of a token's places, as numerics.place_bits.
int place_bits(int top) { return top < 4 ? 2 : 3; }

// Codes of whole tokens, shifted right as far as all codes of a token allow, `top` at most: places; both packed.
// shifted: memory for tokens * (channels + 1) bytes
void pack_tile(
    const PackKernels& pack, const u8* codes, i64 tokens, i64 channels, int bits, int top, u8* shifted, u8* packed,
    u8* places) {
    u8* by_token = shifted + tokens * channels;
    with_channels(channels, [&](auto n) {
        for (i64 t = 0; t < tokens; ++t) {
            const int by = __builtin_ctz(static_cast<u32>(bits_of(codes + t * n, n)) | 1u << top);
            shift_right(codes + t * n, n, by, shifted + t * n);  // packing drops what lies above
            by_token[t] = static_cast<u8>(by);
        }
    });
    pack_run(pack, by_token, tokens, place_bits(top), places);
    pack_run(pack, shifted, tokens * channels, bits, packed);
}

// A matrix of `few` rows of `many` elements, its rows `ld` apart, to one of `many` rows without gaps; and back.
template <class T, class Few>
void to_rows(const T* from, i64 ld, Few few, i64 many, T* to) {
    for (i64 c = 0; c < many; ++c)
        for (i64 i = 0; i < few; ++i) to[c * few + i] = from[i * ld + c];
}
template <class T, class Few>
void from_rows(const T* from, Few few, i64 many, T* to, i64 ld) {
    for (i64 c = 0; c < many; ++c)
        for (i64 i = 0; i < few; ++i) to[i * ld + c] = from[c * few + i];
}

// tile(first, tokens, worker) for tiles of whole tokens
template <class Tile>
void each_packed_tile(i64 rows, i64 channels, int workers, const Tile& tile) {
    const i64 most = packed_tokens(channels);
    parallel(workers, ceil_div(rows, most), [&](i64 task, int worker) {
        tile(task * most, std::min(most, rows - task * most), worker);
    });
}

}  // namespace
}  // namespace sb

// codes: rows * channels bytes -> packed, `bits` each, and places: of each row, at most `top`, place_bits each
SB_EXPORT const char* sb_pack_tokens(
    const sb::u8* codes, sb::i64 rows, sb::i64 channels, int bits, int top, sb::u8* packed, sb::u8* places,
    int threads) {
    using namespace sb;
    const auto kernel = pack_tokens_op.best();
    const int workers = useful_threads(threads, rows * channels, kGrain);
    PerWorker<u8> buffers(packed_tokens(channels) * (channels + 1), workers, 0);
    each_packed_tile(rows, channels, workers, [&](i64 first, i64 tokens, int w) {
        const i64 at = first * channels;
        pack_tile(
            *kernel.table, codes + at, tokens, channels, bits, top, buffers.of(w), packed + at / 8 * bits,
            places + first / 8 * place_bits(top));
    });
    return kernel.name;
}

// The same for a contiguous (outer, channels, inner) tensor of bytes, before packing: small, in the place of codes, and
// the places of outer * inner tokens.
SB_EXPORT const char* sb_shift_tokens(
    const sb::u8* codes, sb::i64 outer, sb::i64 channels, sb::i64 inner, int top, sb::u8* small, sb::u8* places,
    int threads) {
    using namespace sb;
    const i64 span = std::min<i64>(inner, 1 << 10), tiles = ceil_div(inner, span);
    parallel(useful_threads(threads, outer * channels * inner, kGrain), outer * tiles, [&](i64 task, int) {
        const i64 first = task % tiles * span, n = std::min(span, inner - first), sample = task / tiles;
        u8 any[1 << 10] = {}, *by = places + sample * inner + first;
        for (i64 c = 0; c < channels; ++c) {
            const u8* row = codes + (sample * channels + c) * inner + first;
            for (i64 i = 0; i < n; ++i) any[i] |= row[i];
        }
        for (i64 i = 0; i < n; ++i) by[i] = 0;
        for (int k = 1; k <= top; ++k) {
            const u8 below = static_cast<u8>((1 << k) - 1);
            for (i64 i = 0; i < n; ++i) by[i] = static_cast<u8>(by[i] + ((any[i] & below) == 0));
        }
        for (i64 c = 0; c < channels; ++c) {
            const i64 at = (sample * channels + c) * inner + first;
            u8* to = small + at;
            std::memcpy(to, codes + at, static_cast<size_t>(n));
            for (int k = 0; k < top; ++k)  // one place at a time: no vector shifts each of its bytes by another number
                for (i64 i = 0; i < n; ++i) to[i] = k < by[i] ? static_cast<u8>(to[i] >> 1) : to[i];
        }
    });
    return "shift_tokens_portable";
}

// The inverse of sb_pack_tokens.
SB_EXPORT const char* sb_unpack_tokens(
    const sb::u8* packed, const sb::u8* places, sb::i64 rows, sb::i64 channels, int bits, int with_sign, int top,
    sb::u8* codes, int threads) {
    using namespace sb;
    const auto kernel = unpack_tokens_op.best();
    will_fill(codes, rows * channels);
    const int workers = useful_threads(threads, rows * channels, kGrain);
    PerWorker<u8> buffers(packed_tokens(channels), workers, 0);
    each_packed_tile(rows, channels, workers, [&](i64 first, i64 tokens, int w) {
        u8 *to = codes + first * channels, *by = buffers.of(w);
        unpack_run(*kernel.table, packed + first * channels / 8 * bits, tokens * channels, bits, with_sign, to);
        unpack_run(*kernel.table, places + first / 8 * place_bits(top), tokens, place_bits(top), false, by);
        with_channels(channels, [&](auto n) {
            for (i64 t = 0; t < tokens; ++t) shift_left(to + t * n, n, by[t]);
        });
    });
    return kernel.name;
}

// data: rows * channels floats (half: bfloat16), r: their range; order and stream: draw.h, nullptr: half to even
// -> codes 2^(top - e), which are bytes without a sign unless with_sign.
SB_EXPORT const char* sb_quantize_tokens(
    const void* data, int half, sb::i64 rows, sb::i64 channels, const float* r, const sb::i64* stream,
    sb::i64 order_batch, sb::i64 order_channels, sb::i64 order_pixels, int code_bits, int with_sign, int top,
    sb::i8* codes, int threads) {
    using namespace sb;
    const Floats x(data, half);
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

// The same to nearest, of blocks: data is (outer, channels, inner) in the order that cuts it into blocks and, with its
// codes, (outer, inner, channels) in memory. Channels are taken so many at a time that they are whole blocks, brought
// into that order and back where they lie in the cache; 9 places are a filter of 3 x 3.
SB_EXPORT const char* sb_quantize_blocks(
    const void* data, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, sb::i64 block, const float* r,
    int code_bits, int with_sign, int top, sb::i8* codes, int threads) {
    using namespace sb;
    const i64 n = outer * channels * inner, whole = std::lcm(block, inner);
    if (n == 0 || channels * inner % block || whole > kMostTurned) return nullptr;
    const auto kernel = blocks_op.best();
    const TokenSteps steps = token_steps(*r, code_bits, with_sign, top);
    const i64 most = std::min(std::max<i64>(kTurnedTile / whole, 1) * (whole / inner), channels);
    const i64 tiles = ceil_div(channels, most);
    const int workers = useful_threads(threads, n, kGrain);
    const Floats x(data, half);
    PerWorker<float> floats(most * inner, workers, 0.0f);
    PerWorker<i8> bytes(most * inner, workers, 0);
    will_fill(codes, n);
    parallel(workers, outer * tiles, [&](i64 task, int w) {
        const i64 first = task % tiles * most, count = std::min(most, channels - first);
        const i64 at = task / tiles * channels * inner + first;
        i8* q = bytes.of(w);
        (x + at).visit([&](auto* from) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
            T* z = reinterpret_cast<T*>(floats.of(w));
            with_known<9>(inner, [&](auto k) { to_rows<T>(from, channels, k, count, z); });
            kernel.table->token_codes({z, half != 0}, count * inner / block, block, steps, nullptr, q);
        });
        with_known<9>(inner, [&](auto k) { from_rows<i8>(q, k, count, codes + at, channels); });
    });
    return kernel.name;
}

// sb_quantize_tokens of ReLU(y) of a norm, half to even: sb_norm_relu_codes, with channels last in memory. packed,
// places: as sb_pack_tokens makes them of the codes.
SB_EXPORT const char* sb_norm_relu_tokens(
    const sb::i8* q, sb::i64 rows, sb::i64 channels, const sb::i64* total, sb::i64 totals, const float* factor,
    sb::i64 factors, const sb::i8* gamma, sb::i64 gammas, const float* scale, sb::i64 scales, const float* beta,
    sb::i64 betas, sb::i64 count, int bits, int saved_bits, const float* r, int code_bits, int with_sign, int top,
    int half, sb::i8* codes, sb::u8* packed, sb::u8* places, sb::u8* saved, sb::u8* masks, int threads) {
    using namespace sb;
    if (!fits_in_32_bits(count, total, totals)) return nullptr;
    const auto kernel = relu_op.best();
    const PackKernels& pack = *pack_op.best().table;
    const Strips strips({rows, channels, 1});
    const Norm norm(
        strips, {total, totals}, {factor, factors}, {gamma, gammas}, {scale, scales}, {beta, betas}, count, bits,
        saved_bits);
    const TokenSteps steps = token_steps(*r, code_bits, with_sign, top);
    const i64 n = rows * channels, most = packed_tokens(channels) * channels;
    will_fill(codes, n);
    const int workers = useful_threads(threads, n, kGrain);
    PerWorker<float> floats(most, workers, 0.0f);
    PerWorker<u8> bytes(2 * most, workers, 0);
    each_packed_tile(rows, channels, workers, [&](i64 first, i64 tokens, int w) {
        const i64 begin = first * channels, size = tokens * channels;
        const FloatsOut z(floats.of(w), half);
        u8 *k = bytes.of(w), *mask = k + most;
        i32 maxima[kLanes] = {};
        strips.visit(begin, begin + size, [&](i64 at, i64 tile_rows, i64 columns, i64 slot) {
            const i64 i = at - begin;
            kernel.table->norm_relu(
                q + at, norm.operands, slot, {nullptr, half != 0}, tile_rows, columns, z + i,
                reinterpret_cast<i8*>(k + i), mask + i, maxima);
        });
        pack_run(pack, k, size, saved_bits, saved + begin / 8 * saved_bits);
        pack_run(pack, mask, size, 1, masks + begin / 8);
        kernel.table->token_codes({z.p, z.half}, tokens, channels, steps, nullptr, codes + begin);
        pack_tile(
            pack, reinterpret_cast<const u8*>(codes) + begin, tokens, channels, code_bits, top, k,
            packed + begin / 8 * code_bits, places + first / 8 * place_bits(top));
    });
    return kernel.name;
}

// The same of dx of a norm. g, saved and the norm's operands: sb_norm_grad_codes, with channels last in memory.
SB_EXPORT const char* sb_norm_grad_tokens(
    const sb::i8* g, sb::i64 rows, sb::i64 channels, const sb::u8* saved, int saved_bits, const sb::i8* gamma,
    sb::i64 gammas, const float* a, sb::i64 as, const float* u, sb::i64 us, const float* v, sb::i64 vs, const float* t,
    sb::i64 ts, const float* r, const sb::i64* stream, sb::i64 order_batch, sb::i64 order_channels,
    sb::i64 order_pixels, int code_bits, int top, int half, sb::i8* codes, int threads) {
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
    const PackKernels& unpack = *unpack_op.best().table;
    std::vector<Unpacked> ks = Unpacked::for_workers(workers, unpack, saved, saved_bits, draws.largest());
    PerWorker<float> floats(draws.largest(), workers, 0.0f);
    draws.each(workers, [&](i64 begin, i64 end, const u16* bits, int w) {
        const i8* k = ks[w].span(begin, end);
        const FloatsOut dx(floats.of(w), half);
        strips.visit(begin, end, [&](i64 at, i64 tile_rows, i64 columns, i64 slot) {
            kernel.table->norm_grad_floats(
                g + at, k + (at - begin), norm.operands, slot, tile_rows, columns, dx + (at - begin));
        });
        kernel.table->token_codes({dx.p, dx.half}, (end - begin) / channels, channels, steps, bits, codes + begin);
    });
    return kernel.name;
}
