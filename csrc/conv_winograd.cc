// 3x3 convolutions of few bits by Winograd's F(2x2, 3x3), in integers and exact: 16 products where 36 were.
//
//     y = A^T ((2G w 2G^T) . (B^T d B)) A / 4        d 4x4 of the source, y 2x2 of the output, w 3x3
//
// Lavin and Gray, arXiv 1509.09308; 2G instead of G, so that all are integers. The transforms widen codes: B^T d B is
// at most 4 times as large as d, and 2G w 2G^T 9 times as large as w. Codes of 4 bits stay in a byte, so each of the 16
// frequencies is a product of bytes like any other: tiles (4x4 windows) times channels. ShiftQuant's shifts go onto
// what room is left. Where codes are wider, shifts too far apart, or channels few, conv_window.cc does it directly.
#include <algorithm>
#include <cstring>

#include "conv.h"
#include "cpu_features.h"
#include "memory.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ProductKernels> output_op{"conv2d_winograd"};
Op<ProductKernels> grad_input_op{"conv2d_winograd_grad_input"};

constexpr int kFrequencies = 16;
constexpr i64 kSourceGrowth = 4, kWeightGrowth = 9;
constexpr i64 kTiles = 24;         // in a block: two heights of the widest tile
constexpr i64 kLeastChannels = 64;  // below, the transforms cost more than the products that they save
constexpr i64 kLeastTiles = 128;   // below, so does the transform of the weights
constexpr i64 kByte = 127;
constexpr i64 kInt32Limit = (i64{1} << 31) - 1;
constexpr i64 kPad = 64;  // bytes that keep the 16 frequencies off the period of a cache set
constexpr i64 kOrigin = 0;
constexpr Format kBytes{8, 1};

// By how much a transformed code may be shifted and stay in a byte; negative where it does not fit at all.
int room(i64 most) {
    int shift = -1;
    while (most << (shift + 1) <= kByte) ++shift;
    return shift;
}

class Winograd {
public:
    Winograd(const ConvCall& call, bool backward, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), window_(call, backward), rows_(window_.rows), cols_(window_.cols),
          threads_(threads), plan_(kernels, window_.sources, {}, kBytes, kBytes, false), correct_(kernels, plan_),
          nr_(2 * kernels.lanes), padded_(round_up<i64>(window_.targets, kernels.lanes)),
          panels_(ceil_div<i64>(window_.targets, nr_)), tile_rows_(ceil_div<i64>(rows_.dst, 2)),
          tile_cols_(ceil_div<i64>(cols_.dst, 2)), tiles_(call.n * tile_rows_ * tile_cols_) {}

    bool covers() {
        const bool shape = call_.r == 3 && call_.s == 3 && call_.groups == 1 && call_.stride[0] == 1 &&
                           call_.stride[1] == 1 && call_.dilation[0] == 1 && call_.dilation[1] == 1;
        const bool layout = call_.channels_last && call_.a.stride[1] == 1 && call_.scale_stride[0] == 0;
        if (!shape || !layout || call_.wide || !k_.bytes() || window_.sources % k_.lanes) return false;
        if (std::min(window_.sources, window_.targets) < kLeastChannels || tiles_ < kLeastTiles) return false;
        const i64 most_a = call_.a.format().qmax(), most_b = call_.b.format().qmax();
        const int room_a = room(kSourceGrowth * most_a), room_b = room(kWeightGrowth * most_b);
        if (room_a < 0 || room_b < 0) return false;
        std::vector<int> left = window_.left(call_, 0);
        if (!left.empty()) shift_ = *std::min_element(left.begin(), left.end());
        int spread = 0;
        for (int& l : left) {
            l -= shift_;
            spread = std::max(spread, l);
        }
        if (spread > room_a + room_b) return false;
        // 4 y has to fit; the sums of a frequency need not: they are right modulo 2^32.
        const i64 longest = window_.sources * call_.r * call_.s * most_a * most_b;
        if (longest > (kInt32Limit >> spread) / 4) return false;
        for (int l : left) {
            const int on_a = std::min(l, room_a);
            factor_a_.push_back(static_cast<u8>(1 << on_a));
            factor_b_.push_back(static_cast<u8>(1 << (l - on_a)));
        }
        return true;
    }

    void run() {
        ChannelMaxima maxima(call_, padded_, threads_);
        u_ = scratch<i32>(Slot::right, kFrequencies * plan_.words() * padded_);
        init_ = scratch<i32>(Slot::init, kFrequencies * padded_);
        scale_ = scratch<float>(Slot::scale, 2 * padded_);
        const float* bias = reinterpret_cast<const float*>(call_.bias);
        for (i64 d = 0; d < padded_; ++d) {
            const i64 c = std::min(d, window_.targets - 1);
            scale_[d] = call_.scales()[c * call_.scale_stride[1]];
            scale_[padded_ + d] = bias ? bias[c] : 0.0f;
        }
        zeros_.assign(static_cast<size_t>(window_.sources), 0);
        parallel(threads_, panels_, [&](i64 panel, int) { transform_weights(panel); });
        const i64 bytes = call_.element() * call_.n * window_.targets * rows_.dst * cols_.dst;
        will_fill(call_.at(0), bytes);
        stream_ = call_.streams(k_, 4 * window_.targets, bytes);
        parallel(threads_, ceil_div(tiles_, kTiles), [&](i64 block, int worker) {
            convolve(block * kTiles, std::min((block + 1) * kTiles, tiles_), maxima.of(worker));
            if (stream_) finish_streams();
        });
        maxima.write(window_.targets, [](i64 c) { return c; });
    }

private:
    i64 panel_width(i64 panel) const { return std::min(nr_, padded_ - panel * nr_); }
    i32* weights(i64 panel, int frequency) const {
        return u_ + (panel * nr_ * kFrequencies + frequency * panel_width(panel)) * plan_.words();
    }

    // 2G w 2G^T of one panel, with 2G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2], packed as columns of words. Bytes are taken in
    // the order in which they lie: target by target, or, where targets lie together, all of the panel at once.
    void transform_weights(i64 panel) const {
        const i64 first = panel * nr_, n = std::min(nr_, window_.targets - first), ld = panel_width(panel);
        const i64 sources = window_.sources, *stride = window_.weight_stride;
        const bool together = stride[1] == 1 && stride[2] != 1;
        const i64 runs = together ? 1 : n, run = together ? n * sources : sources, all_step = runs * run;
        u8* const all = scratch<u8>(Slot::extra, kFrequencies * all_step + (9 + 12 + 1) * run);
        u8* const taps = all + kFrequencies * all_step;  // 3 x 3
        u8* const half = taps + 9 * run;                 // 4 x 3
        u8* const factor = half + 12 * run;
        for (i64 i = 0; i < run && !factor_b_.empty(); ++i) factor[i] = factor_b_[together ? i / n : i];
        for (i64 o = 0; o < runs; ++o) {
            for (int r = 0; r < 3; ++r)
                for (int s = 0; s < 3; ++s) {
                    const u8* w = call_.b.codes() + (first + o) * stride[1] +
                                  rows_.phases[0].taps[r].weight * stride[3] + cols_.phases[0].taps[s].weight * stride[4];
                    u8* to = taps + (3 * r + s) * run;
                    if (together || stride[2] == 1)
                        for (i64 c = 0; c < (together ? sources : 1); ++c)
                            std::memcpy(to + c * n, w + c * stride[2], static_cast<size_t>(together ? n : sources));
                    else
                        for (i64 c = 0; c < sources; ++c) to[c] = w[c * stride[2]];
                }
            for (int s = 0; s < 3; ++s) spread_taps(taps + s * run, 3 * run, half + s * run, 3 * run, run);
            if (!factor_b_.empty())
                for (i64 t = 0; t < 12 * run; t += run) multiply(half + t, factor, run);
            for (int f = 0; f < 4; ++f)
                spread_taps(half + 3 * f * run, run, all + 4 * f * all_step + o * run, all_step, run);
        }
        for (int f = 0; f < kFrequencies; ++f) {
            const Codes codes = plan_.right_codes(all + f * all_step, together ? 1 : sources, together ? n : 1);
            i32* to = weights(panel, f);
            k_.encode_columns(codes, n, plan_.words(), {to, ld});
            correct_.columns(tile(to, ld), ld, init_ + f * padded_ + first);
        }
    }

    // Three rows `from` apart -> four rows `to` apart. Bytes modulo 2^8: what comes out fits.
    static void spread_taps(const u8* __restrict w, i64 from, u8* __restrict out, i64 to, i64 n) {
        for (i64 c = 0; c < n; ++c) {
            const u8 a = w[c], b = w[from + c], d = w[2 * from + c], sum = a + d;
            out[c] = a + a;
            out[to + c] = sum + b;
            out[2 * to + c] = sum - b;
            out[3 * to + c] = d + d;
        }
    }
    static void multiply(u8* __restrict w, const u8* __restrict factor, i64 n) {
        for (i64 c = 0; c < n; ++c) w[c] *= factor[c];
    }

    Tile tile(const i32* b, i64 ld) const {
        Tile t{};
        t.b = b;
        t.b_step = ld;
        t.a_off = t.b_off = &kOrigin;
        t.segments = 1;
        t.steps = plan_.words();
        return t;
    }

    // Tiles [t0, t1), of any images.
    void convolve(i64 t0, i64 t1, i32* amax) const {
        const i64 count = t1 - t0, sources = window_.sources, targets = window_.targets, *stride = call_.a.stride;
        const i64 step = kTiles * sources + kPad, sums_step = kTiles * nr_;
        u8* source = scratch<u8>(Slot::left, kFrequencies * step);
        i32* sums = scratch<i32>(Slot::sums, kFrequencies * sums_step);
        const u8 offset = plan_.left_codes(nullptr, 0, 0).offset;
        void* out[kTiles][4];
        for (i64 t = 0; t < count; ++t) {
            const i64 n = (t0 + t) / (tile_rows_ * tile_cols_), p = (t0 + t) / tile_cols_ % tile_rows_ * 2,
                      q = (t0 + t) % tile_cols_ * 2;
            const u8* pixels[kFrequencies];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) {
                    const i64 h = p + rows_.low + i, w = q + cols_.low + j;
                    const bool inside = h >= 0 && h < rows_.src && w >= 0 && w < cols_.src;
                    pixels[4 * i + j] = inside ? call_.a.codes() + n * stride[0] + h * stride[2] + w * stride[3]
                                               : zeros_.data();
                }
            k_.winograd_input(pixels, sources, factor_a_.empty() ? nullptr : factor_a_.data(), offset,
                              source + t * sources, step);
            for (int i = 0; i < 4; ++i) {
                const i64 y = p + i / 2, x = q + i % 2;
                const bool inside = y < rows_.dst && x < cols_.dst;
                out[t][i] = inside ? call_.at(((n * rows_.dst + y) * cols_.dst + x) * targets) : nullptr;
            }
        }
        for (i64 panel = 0; panel < panels_; ++panel) {
            const i64 ld = panel_width(panel), first = panel * nr_;
            const int vectors = static_cast<int>(ld / k_.lanes);
            const i64 height = balanced(count, k_.rows[vectors - 1]);
            for (int f = 0; f < kFrequencies; ++f) {
                Tile t = tile(weights(panel, f), ld);
                t.a_row = sources;
                t.a_group = 4 * sources;
                t.a_step = 4;
                t.c_row = ld;
                t.c_group = 4 * ld;
                t.init = init_ + f * padded_ + first;
                for (i64 i = 0; i < count; i += height) {
                    const i64 rows = std::min(height, count - i);
                    t.a = source + f * step + i * sources;
                    t.c = sums + f * sums_step + i * ld;
                    k_.tile[vectors - 1][rows - 1](t);
                }
            }
            const Epilogue epilogue{nullptr, scale_ + first, call_.bias ? scale_ + padded_ + first : nullptr,
                                    amax ? amax + first : nullptr, std::min(nr_, targets - first), call_.half != 0};
            for (i64 t = 0; t < count; ++t) {
                k_.winograd_output(sums + t * ld, sums_step, vectors, shift_, epilogue, stream_, out[t]);
                for (void*& pixel : out[t]) pixel = pixel ? static_cast<u8*>(pixel) + nr_ * call_.element() : nullptr;
            }
        }
    }

    const ConvCall& call_;
    const ProductKernels& k_;
    Window window_;
    const WindowAxis &rows_, &cols_;
    int threads_;
    Reduction plan_;
    Correction correct_;
    i64 nr_, padded_, panels_, tile_rows_, tile_cols_, tiles_;
    int shift_ = 0;  // what all left shifts have in common
    Lines<u8> factor_a_, factor_b_, zeros_;
    i32 *u_ = nullptr, *init_ = nullptr;
    float* scale_ = nullptr;
    bool stream_ = false;
};

}  // namespace

const char* by_winograd(const ConvCall& call, bool backward, int threads) {
    if (call.sums_only()) return nullptr;  // its last transform writes floats
    const auto kernel = (backward ? grad_input_op : output_op).best();
    if (!kernel.table || call.n == 0 || call.c == 0 || call.o == 0 || call.p == 0 || call.q == 0) return nullptr;
    Winograd winograd(call, backward, *kernel.table, threads);
    if (!winograd.covers()) return nullptr;
    winograd.run();
    return kernel.name;
}

}  // namespace sb
