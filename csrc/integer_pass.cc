// The element-wise passes of the integer-only mode: sb_int_amax, sb_int_quantize, sb_int_lookup, sb_int_norm_grad,
// sb_int_add, sb_int_relu, sb_int_relu_grad.
//
// A tensor is contiguous, (outer, channels, inner); what differs from channel to channel is an array of `channels`
// numbers. Random bits are those of sb_quantize: by logical index, drawn for a tile at a time.
#include "integer_pass.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "memory.h"
#include "pack.h"
#include "parallel.h"
#include "quantize.h"

namespace sb {
namespace {

Op<IntegerPassKernels> op{"integer_pass"};
Op<QuantizeKernels> random_op{"quantize_sr"};
Op<PackKernels> pack_op{"pack_codes"}, unpack_op{"unpack_codes"};

struct Shape {
    i64 outer, channels, inner;
    i64 count() const { return outer * channels * inner; }

    // run(at, length, channel) over the elements begin .. end
    template <class Run>
    void runs(i64 begin, i64 end, const Run& run) const {
        while (begin < end) {
            const i64 row = begin / inner, stop = channels == 1 ? end : std::min(end, (row + 1) * inner);
            run(begin, stop - begin, channels == 1 ? 0 : row % channels);
            begin = stop;
        }
    }
    // block(begin, end, worker) over tasks
    template <class Block>
    void blocks(int threads, const Block& block) const {
        const i64 n = count();
        parallel(useful_threads(threads, n, kPassGrain), ceil_div(n, kPassBlock), [&](i64 task, int worker) {
            block(task * kPassBlock, std::min((task + 1) * kPassBlock, n), worker);
        });
    }
};

// Eight codes come in one word, and go, as bytes, in one: loads and stores are what a table look-up costs.
template <class To>
void lookup_run(const u8* __restrict codes, u8 flip, const To* __restrict row, i64 n, To* __restrict out) {
    constexpr i64 word = sizeof(u64);
    const u64 flips = in_each_byte(flip);
    i64 i = 0;
    for (; i + word <= n; i += word) {
        u64 each;
        To found[word];
        std::memcpy(&each, codes + i, sizeof each);
        each ^= flips;
        for (i64 j = 0; j < word; ++j) found[j] = row[each >> (8 * j) & 255];
        std::memcpy(out + i, found, sizeof found);
    }
    for (; i < n; ++i) out[i] = row[static_cast<u8>(codes[i] ^ flip)];
}

template <class To>
void lookup(const u8* codes, u8 flip, const To* table, const Shape& shape, To* out, int threads) {
    shape.blocks(threads, [&](i64 begin, i64 end, int) {
        shape.runs(begin, end, [&](i64 at, i64 n, i64 c) {
            lookup_run(codes + at, flip, table + 256 * c, n, out + at);
        });
    });
}

}  // namespace
}  // namespace sb

// largest[channels] = max |x|
SB_EXPORT const char* sb_int_amax(
    const sb::i32* x, sb::i64 outer, sb::i64 channels, sb::i64 inner, sb::i64* largest, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const Shape shape{outer, channels, inner};
    std::vector<i32> found(static_cast<size_t>(threads * channels), 0);
    shape.blocks(threads, [&](i64 begin, i64 end, int worker) {
        shape.runs(begin, end, [&](i64 at, i64 n, i64 c) {
            i32& best = found[static_cast<size_t>(worker * channels + c)];
            best = kernel.table->largest(x + at, n, best);
        });
    });
    for (i64 c = 0; c < channels; ++c) {
        largest[c] = 0;
        for (i64 i = c; i < static_cast<i64>(found.size()); i += channels)
            largest[c] = std::max<i64>(largest[c], found[static_cast<size_t>(i)]);
    }
    return kernel.name;
}

// codes = clamp(x / 2^shift[channel], low, high); stream null: half to even
SB_EXPORT const char* sb_int_quantize(
    const sb::i32* x, sb::i64 outer, sb::i64 channels, sb::i64 inner, const sb::i32* shift, const sb::i64* stream,
    int low, int high, void* codes, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const auto random = random_op.best();
    const Shape shape{outer, channels, inner};
    i8* out = static_cast<i8*>(codes);
    will_fill(codes, shape.count());
    shape.blocks(threads, [&](i64 begin, i64 end, int) {
        if (!stream) {
            shape.runs(begin, end, [&](i64 at, i64 n, i64 c) {
                kernel.table->nearest(x + at, n, shift[c], low, high, out + at);
            });
            return;
        }
        u16 r[kPassTile + kRandomSlack];
        for (i64 tile = begin; tile < end; tile += kPassTile) {  // a multiple of 4: whole calls
            const i64 stop = std::min(tile + kPassTile, end);
            random.table->random_run(
                static_cast<u64>(*stream), static_cast<u64>(tile / 4), ceil_div<i64>(stop - tile, 4), r);
            shape.runs(tile, stop, [&](i64 at, i64 n, i64 c) {
                kernel.table->stochastic(x + at, n, shift[c], r + (at - tile), low, high, out + at);
            });
        }
    });
    return kernel.name;
}

// out = table[channel][code - least code], 256 entries to a channel, int32 or (narrow) int8
SB_EXPORT const char* sb_int_lookup(
    const void* codes, int is_signed, sb::i64 outer, sb::i64 channels, sb::i64 inner, const void* table, int narrow,
    void* out, int threads) {
    using namespace sb;
    const Shape shape{outer, channels, inner};
    const u8 flip = is_signed ? 128 : 0;
    will_fill(out, shape.count() * (narrow ? 1 : 4));
    if (narrow)
        lookup(static_cast<const u8*>(codes), flip, static_cast<const i8*>(table), shape, static_cast<i8*>(out),
               threads);
    else
        lookup(static_cast<const u8*>(codes), flip, static_cast<const i32*>(table), shape, static_cast<i32*>(out),
               threads);
    return "int_lookup_portable";
}

// dx = ((g << fraction) - u - v sign(k)) a / 2^shift; u, v, a: one for each channel
SB_EXPORT const char* sb_int_norm_grad(
    const sb::i8* g, const sb::i8* k, sb::i64 outer, sb::i64 channels, sb::i64 inner, int fraction, const sb::i32* u,
    const sb::i32* v, const sb::i64* a, int shift, sb::i32* dx, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const Shape shape{outer, channels, inner};
    will_fill(dx, 4 * shape.count());
    shape.blocks(threads, [&](i64 begin, i64 end, int) {
        shape.runs(begin, end, [&](i64 at, i64 n, i64 c) {
            kernel.table->norm_grad(g + at, k + at, n, fraction, u[c], v[c], a[c], shift, dx + at);
        });
    });
    return kernel.name;
}

// sum = a / 2^*a_right + b / 2^*b_right; a negative shift goes left, by its room at most. by_channel: b is one number
// for each channel
SB_EXPORT const char* sb_int_add(
    const sb::i32* a, const sb::i32* a_right, int a_room, const sb::i32* b, const sb::i32* b_right, int b_room,
    sb::i64 outer, sb::i64 channels, sb::i64 inner, int by_channel, sb::i32* sum, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const Shape shape{outer, channels, inner};
    const auto left = [](i32 right, int room) { return room > 0 ? std::clamp(-right, 0, room) : 0; };
    const auto right = [](i32 right) { return std::clamp(right, 0, 30); };
    const int al = left(*a_right, a_room), ar = right(*a_right), bl = left(*b_right, b_room), br = right(*b_right);
    will_fill(sum, 4 * shape.count());
    std::vector<i32> values;
    if (by_channel) {
        const std::vector<i32> zeros(static_cast<size_t>(channels), 0);
        values.resize(zeros.size());
        kernel.table->add(zeros.data(), 0, 0, b, bl, br, channels, values.data());
    }
    shape.blocks(threads, [&](i64 begin, i64 end, int) {
        if (!by_channel) {
            kernel.table->add(a + begin, al, ar, b + begin, bl, br, end - begin, sum + begin);
            return;
        }
        shape.runs(begin, end, [&](i64 at, i64 n, i64 c) {
            kernel.table->add_value(a + at, al, ar, values[static_cast<size_t>(c)], n, sum + at);
        });
    });
    return kernel.name;
}

// y = max(x, 0), mask: a bit an element
SB_EXPORT const char* sb_int_relu(const sb::i32* x, sb::i64 n, sb::i32* y, sb::u8* mask, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const PackKernels& pack = *pack_op.best().table;
    will_fill(y, 4 * n);
    Shape{1, 1, n}.blocks(threads, [&](i64 begin, i64 end, int) {
        u8 passes[kPassTile];
        for (i64 tile = begin; tile < end; tile += kPassTile) {  // whole bytes of the mask
            const i64 size = std::min(kPassTile, end - tile);
            kernel.table->relu(x + tile, size, y + tile, passes);
            pack_run(pack, passes, size, 1, mask + tile / 8);
        }
    });
    return kernel.name;
}

// h = g where the mask has a bit set, and 0 elsewhere
SB_EXPORT const char* sb_int_relu_grad(const sb::i32* g, const sb::u8* mask, sb::i64 n, sb::i32* h, int threads) {
    using namespace sb;
    const auto kernel = op.best();
    const PackKernels& unpack = *unpack_op.best().table;
    will_fill(h, 4 * n);
    Shape{1, 1, n}.blocks(threads, [&](i64 begin, i64 end, int) {
        u8 passes[kPassTile];
        for (i64 tile = begin; tile < end; tile += kPassTile) {
            const i64 size = std::min(kPassTile, end - tile);
            unpack_run(unpack, mask + tile / 8, size, 1, false, passes);
            kernel.table->relu_grad(g + tile, passes, size, h + tile);
        }
    });
    return kernel.name;
}
