// The passes of ops/integer_tokens.py, sb_int_token_shifts and sb_int_quantize_tokens, and the squared errors by which
// a scale is chosen, sb_int_squared_errors.
//
// A tensor is contiguous, (outer, channels, inner); a token is an index of outer and one of inner. Random bits are
// those of sb_quantize: by logical index, drawn for a tile at a time.
#include "integer_pass.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "memory.h"
#include "parallel.h"
#include "quantize.h"

namespace sb {
namespace {

Op<IntegerPassKernels> op{"integer_pass"};
Op<QuantizeKernels> random_op{"quantize_sr"};

struct Tokens {
    i64 outer, channels, inner;
    i64 count() const { return outer * channels * inner; }

    // to[i] = of_token[the token of element begin + i]
    void spread(const u8* of_token, i64 begin, i64 n, u8* to) const {
        for (i64 at = begin, end = begin + n; at < end;) {
            const i64 row = at / inner, column = at - row * inner, length = std::min(inner - column, end - at);
            const u8* from = of_token + row / channels * inner + column;
            if (inner > 1) {
                std::memcpy(to + (at - begin), from, static_cast<size_t>(length));
                at += length;
            } else {  // a row of the matrix, or what is left of it
                const i64 whole = std::min((row / channels + 1) * channels, end) - at;
                std::memset(to + (at - begin), *from, static_cast<size_t>(whole));
                at += whole;
            }
        }
    }
};

}  // namespace
}  // namespace sb

// needed[outer * inner]: the smallest n with max |x| of the token <= high 2^n; *largest = max |x|
SB_EXPORT const char* sb_int_token_shifts(
    const sb::i32* x, sb::i64 outer, sb::i64 channels, sb::i64 inner, int high, sb::u8* needed, sb::i64* largest,
    int threads) {
    using namespace sb;
    const auto kernel = op.best();
    *largest = 0;
    if (outer * channels * inner == 0) return kernel.name;  // needed is 0
    const i64 tokens = outer * inner, span = inner > 1 ? std::min(inner, kPassTile) : kPassTile;
    const i64 tiles = inner > 1 ? outer * ceil_div(inner, span) : ceil_div(tokens, span);
    const int workers = useful_threads(threads, tokens * channels, kPassGrain);
    std::vector<i32> found(static_cast<size_t>(workers), 0);
    parallel(workers, tiles, [&](i64 tile, int worker) {
        i32 best[kPassTile] = {};
        const i64 sample = inner > 1 ? tile / ceil_div(inner, span) : 0;
        const i64 first = inner > 1 ? tile % ceil_div(inner, span) * span : tile * span;
        const i64 n = std::min(span, (inner > 1 ? inner : tokens) - first);
        if (inner > 1)
            for (i64 c = 0; c < channels; ++c)
                kernel.table->largest_each(x + (sample * channels + c) * inner + first, n, best);
        else
            for (i64 t = 0; t < n; ++t) best[t] = kernel.table->largest(x + (first + t) * channels, channels, 0);
        kernel.table->shifts(best, n, high, needed + sample * inner + first);
        i32& most = found[static_cast<size_t>(worker)];
        most = kernel.table->largest(best, n, most);
    });
    *largest = *std::max_element(found.begin(), found.end());
    return kernel.name;
}

// codes = clamp(x / 2^s, low, high) 2^(s - *base + top), s = token_shift(needed, *base, top); stream null: half to even
SB_EXPORT const char* sb_int_quantize_tokens(
    const sb::i32* x, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::u8* needed, const sb::i32* base,
    const sb::i64* stream, int low, int high, int top, void* codes, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const auto random = random_op.best();
    const Tokens tokens{outer, channels, inner};
    const i64 n = tokens.count();
    const TokenShift shift{*base - top, *base};
    i8* out = static_cast<i8*>(codes);
    will_fill(codes, n);
    parallel(useful_threads(threads, n, kPassGrain), ceil_div(n, kPassBlock), [&](i64 task, int) {
        u16 r[kPassTile + kRandomSlack];
        u8 each[kPassTile];
        const i64 end = std::min((task + 1) * kPassBlock, n);
        for (i64 tile = task * kPassBlock; tile < end; tile += kPassTile) {  // a multiple of 4: whole calls
            const i64 size = std::min(kPassTile, end - tile);
            tokens.spread(needed, tile, size, each);
            if (!stream) {
                kernel.table->nearest_each(x + tile, size, each, shift, low, high, out + tile);
                continue;
            }
            random.table->random_run(
                static_cast<u64>(*stream), static_cast<u64>(tile / 4), ceil_div<i64>(size, 4), r);
            kernel.table->stochastic_each(x + tile, size, each, shift, r, low, high, out + tile);
        }
    });
    return kernel.name;
}

// errors[candidates]: of every k-th element, rounded to 17 bits below *largest, for the bases *base, *base - 1, ..;
// needed null: every element has the shift of its base
SB_EXPORT const char* sb_int_squared_errors(
    const sb::i32* x, sb::i64 outer, sb::i64 channels, sb::i64 inner, sb::i64 every, const sb::i32* base,
    const sb::i64* largest, const sb::u8* needed, int top, int candidates, int low, int high, sb::i64* errors,
    int threads) {
    using namespace sb;
    (void)threads;  // 2^16 elements
    const auto kernel = op.best();
    const int drop = shift_below(*largest, 0xFFFF);
    const i64 n = ceil_div(outer * channels * inner, every);
    std::vector<i32> sample(static_cast<size_t>(n));
    std::vector<u8> of_token(static_cast<size_t>(n), 0);
    for (i64 i = 0; i < n; ++i) {
        const i64 at = i * every;
        sample[static_cast<size_t>(i)] = static_cast<i32>(nearest(x[at], drop));
        if (needed) of_token[static_cast<size_t>(i)] = needed[at / (channels * inner) * inner + at % inner];
    }
    for (int i = 0; i < candidates; ++i) {
        const i32 high_shift = *base - i, low_shift = needed ? high_shift - top : high_shift;
        errors[i] = kernel.table->squared_error(
            sample.data(), of_token.data(), n, TokenShift{low_shift, high_shift}, drop, low, high);
    }
    return kernel.name;
}
