// grad_weight where pixels are few and channels many (NHWC): a plain matrix product for each tap (conv.h).
//
// conv_grad_weight.cc reduces along rows of pixels. Short rows make short runs, padded to whole words, and a small sum
// over pixels does not pay for sums of each worker that are added in the end. Here the pixels of a tap, those beyond the
// border as zeros, are copied one behind the other, and a tile of sums over all of them goes to dw (O, taps, C) at once.
#include <algorithm>
#include <cstring>
#include <vector>

#include "conv.h"
#include "cpu_features.h"
#include "memory.h"
#include "parallel.h"

namespace sb {
namespace {

ProductOps ops{"conv2d_grad_weight", "conv2d_few_bits_grad_weight"};

constexpr i64 kMostPixels = 2048;
constexpr i64 kLeastChannels = 128;    // of x and of g: fewer do not pay for the copies
constexpr i64 kPackedBytes = 4 << 20;  // of g, at most
constexpr i64 kSourceBytes = 256 << 10;  // of x in a task: a quarter of the second cache
constexpr i64 kOrigin = 0;

class FewPixels {
public:
    FewPixels(const ConvCall& call, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), threads_(threads), pixels_(call.n * call.p * call.q), taps_(call.r * call.s),
          nr_(2 * kernels.lanes), plan_(kernels, pixels_, {}, call.a.format(), call.b.format(), call.wide),
          chunks_(plan_.chunks(1)), correct_(kernels, plan_), words_(plan_.words()),
          ld_(words_ % 64 < 16 ? words_ + 16 : words_) {  // off the period of a cache set
        in_place_ = taps_ == 1 && !call.padding[0] && !call.padding[1] && call.h == call.p && call.w == call.q &&
                    rows_touch(call.b, call.h, call.w) && images_touch(call.b, call.n, call.h, call.w);
    }

    bool covers() const {
        const ConvCall::Operand &g = call_.a, &x = call_.b;
        const bool layout = g.stride[1] == 1 && x.stride[1] == 1 && rows_touch(g, call_.p, call_.q) &&
                            images_touch(g, call_.n, call_.p, call_.q) && (taps_ == 1 || call_.channels_last);
        const bool outer = !g.shift && !x.shift && !(call_.scale_stride[0] && call_.scale_stride[1]);
        return layout && outer && call_.groups == 1 && !call_.sums_only() && pixels_ > 0 && pixels_ <= kMostPixels &&
               std::min(call_.c, call_.o) >= kLeastChannels && 4 * ld_ * call_.o <= kPackedBytes &&
               in_one_run(chunks_, call_.wide, correct_);
    }

    void run() {
        packed_ = scratch<i32>(Slot::right, ld_ * call_.o);
        const i64 rows = k_.rows[1];
        parallel(threads_, ceil_div(call_.o, rows), [&](i64 task, int) {
            const i64 first = task * rows;
            k_.encode_rows(plan_.left_codes(call_.a.codes() + first, 1, call_.a.stride[3]),
                           std::min(rows, call_.o - first), words_, packed_ + first * ld_, ld_);
        });
        stream_ = call_.streams(k_, 4 * call_.c, 4 * call_.o * taps_ * call_.c);
        const i64 share = ceil_div<i64>(call_.c, 2 * threads_);
        const i64 block = std::max<i64>(1, std::min(kSourceBytes / (4 * words_), share) / nr_) * nr_;
        parallel(threads_, ceil_div(call_.c, block), [&](i64 task, int) {
            multiply(task * block, std::min((task + 1) * block, call_.c));
            if (stream_) finish_streams();
        });
    }

private:
    // Channels [c0, c1) of the pixels that tap (r, s) sees.
    void copy_pixels(i64 r, i64 s, i64 c0, i64 c1, u8* to) const {
        const i64 *stride = call_.b.stride, count = c1 - c0;
        for (i64 n = 0; n < call_.n; ++n)
            for (i64 p = 0; p < call_.p; ++p) {
                const i64 h = p * call_.stride[0] + r * call_.dilation[0] - call_.padding[0];
                const u8* row = call_.b.codes() + n * stride[0] + h * stride[2] + c0;
                for (i64 q = 0; q < call_.q; ++q, to += count) {
                    const i64 w = q * call_.stride[1] + s * call_.dilation[1] - call_.padding[1];
                    if (h < 0 || h >= call_.h || w < 0 || w >= call_.w)
                        std::memset(to, 0, static_cast<size_t>(count));
                    else
                        std::memcpy(to, row + w * stride[3], static_cast<size_t>(count));
                }
            }
    }

    // dw of input channels [c0, c1): the columns.
    void multiply(i64 c0, i64 c1) const {
        const i64 count = c1 - c0, columns = round_up<i64>(count, k_.lanes), height = balanced(call_.o, k_.rows[1]);
        u8* copy = scratch<u8>(Slot::extra, in_place_ ? 0 : pixels_ * count);
        const u8* pixels = in_place_ ? call_.b.codes() + c0 : copy;
        i32* source = scratch<i32>(Slot::left, words_ * columns);
        i32* init = scratch<i32>(Slot::init, columns);
        float* scale = scratch<float>(Slot::scale, columns + call_.o);
        float* row_scale = scale + columns;
        const bool by_input = call_.scale_stride[1];
        for (i64 c = 0; c < columns; ++c)
            scale[c] = by_input ? call_.scales()[std::min(c0 + c, call_.c - 1) * call_.scale_stride[1]] : 1.0f;
        for (i64 o = 0; o < call_.o; ++o) row_scale[o] = by_input ? 1.0f : call_.scales()[o * call_.scale_stride[0]];
        Tile t{};
        t.a_row = 4 * ld_;
        t.a_group = 4 * t.a_row;
        t.a_step = 4;
        t.a_off = t.b_off = &kOrigin;
        t.segments = 1;
        t.exact = plan_.exact();
        t.stream = stream_;
        t.c_row = taps_ * call_.c;
        t.c_group = 4 * t.c_row;
        for (i64 tap = 0; tap < taps_; ++tap) {
            if (!in_place_) copy_pixels(tap / call_.s, tap % call_.s, c0, c1, copy);
            const i64 pixel = in_place_ ? call_.b.stride[3] : count, whole = count / nr_ * nr_;
            const auto pack = [&](i64 c, i64 n, i64 ld) {  // whole panels at once, or a part of one
                const Panels panels{source + c * words_, ld, ld, ld * words_};
                if (n) k_.encode_columns(plan_.right_codes(pixels + c, 1, pixel), n, words_, panels);
            };
            pack(0, whole, nr_);
            pack(whole, count - whole, columns - whole);
            for (i64 c = 0; c < count; c += nr_) {
                t.b = source + c * words_;
                t.b_step = std::min(nr_, columns - c);
                correct_.columns(chunk_tile(t, chunks_[0]), t.b_step, init + c);
            }
            for (i64 o = 0; o < call_.o; o += height)
                for (i64 c = 0; c < count; c += nr_) {
                    const i64 width = std::min(nr_, columns - c);
                    const i64 columns_kept = std::min(nr_, count - c);
                    const Epilogue epilogue{row_scale + o, scale + c, nullptr, nullptr, columns_kept, false};
                    t.a = reinterpret_cast<const u8*>(packed_ + o * ld_);
                    t.b = source + c * words_;
                    t.b_step = width;
                    Tile one = chunk_tile(t, chunks_[0]);
                    one.init = init + c;
                    one.epilogue = &epilogue;
                    one.c = reinterpret_cast<i32*>(call_.at((o * taps_ + tap) * call_.c + c0 + c));
                    k_.tile[width / k_.lanes - 1][std::min(height, call_.o - o) - 1](one);
                }
        }
    }

    const ConvCall& call_;
    const ProductKernels& k_;
    int threads_;
    i64 pixels_, taps_, nr_;
    Reduction plan_;
    std::vector<Chunk> chunks_;
    Correction correct_;
    i64 words_, ld_;
    bool in_place_;  // the pixels of the one tap are those of x as it lies
    bool stream_ = false;
    i32* packed_ = nullptr;
};

}  // namespace

const char* grad_weight_of_few_pixels(const ConvCall& call, int threads) {
    if (call.wide || call.c == 0 || call.o == 0) return nullptr;
    const auto kernel = best_products(ops, call.a.format(), call.b.format(), 0);
    if (kernel.table != best_products(ops, call.b.format(), call.a.format(), 0).table) return nullptr;  // x on the left
    FewPixels product(call, *kernel.table, threads);
    if (!product.covers()) return nullptr;
    product.run();
    return kernel.name;
}

}  // namespace sb
