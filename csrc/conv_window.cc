// sb_conv2d and sb_conv2d_grad_input: an implicit matrix product over the taps of a window (conv.h).
//
// A task takes some rows of one image: it packs the source rows that they see, borders included, as words of channels,
// multiplies tiles of neighbouring pixels by panels of target channels, one segment a tap, and scales the sums into the
// output. Source words lie as pixels of channels (NHWC codes) or as planes (NCHW codes): whichever needs no
// transposition.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "conv.h"
#include "cpu_features.h"
#include "memory.h"
#include "parallel.h"

namespace sb {
namespace {

ProductOps output_ops{"conv2d", "conv2d_few_bits"};
ProductOps grad_input_ops{"conv2d_grad_input", "conv2d_few_bits_grad_input"};

constexpr i64 kTaskBytes = 256 << 10;  // source words of a task, and its sums: a quarter of the second cache each
constexpr i64 kGrain = 1 << 18;        // multiply-accumulates below which a second thread costs more than it saves

class Convolution {
public:
    Convolution(const ConvCall& call, bool backward, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), window_(call, backward), rows_(window_.rows), cols_(window_.cols),
          threads_(threads), nr_(2 * kernels.lanes), padded_(round_up<i64>(window_.targets, kernels.lanes)),
          panels_(ceil_div<i64>(window_.targets, nr_)), pixel_major_(call.a.stride[1] == 1) {
        for (i64 g = 0; g < call.groups; ++g)
            plans_.push_back(std::make_unique<Reduction>(kernels, window_.sources, window_.left(call, g),
                                                         call.a.format(), call.b.format(), call.wide));
        for (const Phase& r : rows_.phases)
            for (const Phase& c : cols_.phases) phases_.push_back({&r, &c});
        width_ = (cols_.count() - 1) * cols_.src_step + cols_.high - cols_.low + 1;
        channels_ = window_.targets * call.groups;
        zeros_between_ = has_zeros_between();
    }

    void run() {
        ChannelMaxima maxima(call_, call_.groups * padded_, threads_);
        if (call_.n > 0 && rows_.dst > 0 && cols_.dst > 0 && window_.targets > 0) run(maxima);
        maxima.write(channels_, [&](i64 c) { return c / window_.targets * padded_ + c % window_.targets; });
    }

private:
    void run(ChannelMaxima& maxima) {
        pack_weights();
        const i64 bytes = call_.element() * call_.n * channels_ * rows_.dst * cols_.dst;
        will_fill(call_.at(0), bytes);
        stream_ = finishes_by_tile() && call_.streams(k_, 4 * window_.targets, bytes);
        // Rows of i in a task: as many as the cache takes, few enough to give every thread some. Small images go
        // several at a time, so that a panel of weights is used for all of them while it is near.
        const i64 count = rows_.count(), want = 2 * threads_;
        const i64 source_row = 4 * width_ * most_words() * rows_.src_step;
        const i64 sums_row = (call_.wide ? 8 : 4) * rows_.step * cols_.dst * padded_;
        const i64 fit = std::max<i64>(1, kTaskBytes / std::max<i64>(1, std::max(source_row, sums_row)));
        const i64 block = balanced(count, std::min(fit, std::max<i64>(1, count * call_.n / want)));
        const i64 blocks = ceil_div(count, block);
        const i64 batch = balanced(call_.n, std::clamp<i64>(fit / count, 1, std::max<i64>(1, call_.n / want)));
        const i64 batches = ceil_div(call_.n, batch);
        parallel(threads_, batches * blocks, [&](i64 task, int worker) {
            const i64 i0 = task % blocks * block, n0 = task / blocks * batch;
            const i64 n1 = std::min(n0 + batch, call_.n), i1 = std::min(i0 + block, count);
            if (zeros_between_) clear(n0, n1, i0, i1);
            for (i64 g = 0; g < call_.groups; ++g) convolve(n0, n1, g, i0, i1, maxima.of(worker));
            if (stream_) finish_streams();
        });
    }

    // Has an NHWC output pixels that no tap reaches (a stride beyond the kernel), and are they +0?
    bool has_zeros_between() const {
        const bool untouched = std::any_of(phases_.begin(), phases_.end(), [](const PhasePair& p) { return !p.taps(); });
        if (!untouched || !finishes_by_tile() || call_.bias) return false;
        const i64 images = call_.scale_stride[0] ? call_.n : 1, channels = call_.scale_stride[1] ? channels_ : 1;
        for (i64 i = 0; i < images; ++i)
            for (i64 c = 0; c < channels; ++c) {
                const float zero = 0.0f * call_.scales()[i * call_.scale_stride[0] + c * call_.scale_stride[1]];
                if (!(zero == 0) || std::signbit(zero)) return false;
            }
        return true;
    }

    void clear(i64 n0, i64 n1, i64 i0, i64 i1) const {
        const i64 h0 = i0 * rows_.step, h1 = std::min(i1 * rows_.step, rows_.dst), row = cols_.dst * channels_;
        for (i64 n = n0; n < n1; ++n)
            std::memset(call_.at((n * rows_.dst + h0) * row), 0,
                        static_cast<size_t>(call_.element() * (h1 - h0) * row));
    }

    struct PhasePair {
        const Phase *rows, *cols;
        i64 taps() const { return static_cast<i64>(rows->taps.size() * cols->taps.size()); }
    };
    struct Packed {  // the weights of one group and phase
        const i32* words;
        const i32* init;
        std::vector<Chunk> chunks;
        i64 run;  // taps that follow each other in both operands, and so are one segment
    };

    i64 most_words() const {
        i64 most = 1;
        for (const auto& plan : plans_) most = std::max(most, plan->words());
        return most;
    }
    i64 panel_width(i64 panel) const { return std::min(nr_, padded_ - panel * nr_); }

    void pack_weights() {
        i64 words = 0, inits = 0;
        for (const auto& plan : plans_)
            for (const PhasePair& phase : phases_) {
                packed_.push_back({nullptr, nullptr, plan->chunks(phase.taps()), 1});
                merge_taps(packed_.back(), phase, plan->words());
                words += phase.taps() * plan->words() * padded_;
                inits += static_cast<i64>(packed_.back().chunks.size()) * padded_;
            }
        i32* to = scratch<i32>(Slot::right, words);
        i32* init = scratch<i32>(Slot::init, inits);
        for (size_t i = 0; i < packed_.size(); ++i) {
            packed_[i].words = to;
            packed_[i].init = init;
            to += phases_[i % phases_.size()].taps() * plans_[i / phases_.size()]->words() * padded_;
            init += static_cast<i64>(packed_[i].chunks.size()) * padded_;
        }
        const i64 parts = static_cast<i64>(packed_.size());
        const int threads = useful_threads(threads_, words, kGrain);
        parallel(threads, parts * panels_, [&](i64 task, int) { pack_panel(task / panels_, task % panels_); });
    }

    // A row of taps over pixels of words that touch is one run of words.
    void merge_taps(Packed& packed, const PhasePair& phase, i64 words) const {
        const auto& taps = phase.cols->taps;
        const i64 run = static_cast<i64>(taps.size());
        if (!pixel_major_ || packed.chunks.size() != 1 || run < 2 || phase.rows->taps.empty()) return;
        for (i64 s = 1; s < run; ++s)
            if (taps[s].offset != taps[s - 1].offset + 1) return;
        packed.chunks[0] = {0, run * words, 0, static_cast<i64>(phase.rows->taps.size()), packed.chunks[0].shift};
        packed.run = run;
    }

    void pack_panel(i64 part, i64 panel) const {
        const i64 group = part / static_cast<i64>(phases_.size()), *stride = window_.weight_stride;
        const PhasePair& phase = phases_[part % phases_.size()];
        const Reduction& plan = *plans_[group];
        const Packed& packed = packed_[part];
        const i64 ld = panel_width(panel), first = panel * nr_, n = std::min(nr_, window_.targets - first);
        i32* const begin = const_cast<i32*>(packed.words) + first * phase.taps() * plan.words();
        i32* to = begin;
        std::vector<i64> at;
        for (const Phase::Tap& r : phase.rows->taps)
            for (const Phase::Tap& s : phase.cols->taps) {
                const u8* data = call_.b.codes() + group * stride[0] + first * stride[1] + r.weight * stride[3] +
                                 s.weight * stride[4];
                k_.encode_columns(plan.right_codes(data, stride[1], stride[2]), n, plan.words(), {to, ld});
                at.push_back(to - begin);
                to += plan.words() * ld;
            }
        const std::vector<i64> segments = every(at, packed.run);
        Tile t{};
        t.b = begin;
        t.b_step = ld;
        t.a_off = t.b_off = segments.data();
        const Correction correct(k_, plan);
        for (size_t ch = 0; ch < packed.chunks.size(); ++ch)
            correct.columns(chunk_tile(t, packed.chunks[ch]), ld,
                            const_cast<i32*>(packed.init) + static_cast<i64>(ch) * padded_ + first);
    }

    static std::vector<i64> every(const std::vector<i64>& all, i64 step) {
        std::vector<i64> some;
        for (size_t i = 0; i < all.size(); i += static_cast<size_t>(step)) some.push_back(all[i]);
        return some;
    }

    // Source rows [from, from + count) of an image, with their borders, as words.
    void pack_source(const Reduction& plan, i64 image, i64 group, i64 from, i64 count, i32* to) const {
        const i64 words = plan.words(), *stride = call_.a.stride;
        const u8* data = call_.a.codes() + image * stride[0] + group * window_.sources * stride[1];
        const Codes codes = plan.left_codes(data, stride[3], stride[1]);
        const i64 begin = std::clamp<i64>(-cols_.low, 0, width_),
                  end = std::clamp<i64>(cols_.src - cols_.low, begin, width_);
        const i64 column = pixel_major_ ? words : 1,
                  lines = pixel_major_ ? 1 : words;  // words in a pixel; runs in a row
        for (i64 i = 0; i < count; ++i) {
            i32* row = to + i * width_ * column;
            const i64 h = from + i;
            const bool inside = h >= 0 && h < rows_.src && begin < end;
            const i64 left = inside ? begin : width_;
            for (i64 line = 0; line < lines; ++line) {
                i32* run = row + line * count * width_;
                std::memset(run, codes.offset, static_cast<size_t>(4 * left * column));
                if (inside)
                    std::memset(run + end * column, codes.offset, static_cast<size_t>(4 * (width_ - end) * column));
            }
            if (!inside) continue;
            Codes line = codes;
            line.data += h * stride[2] + (begin + cols_.low) * stride[3];
            if (pixel_major_)
                k_.encode_rows(line, end - begin, words, row + begin * words, words);
            else
                k_.encode_columns(line, end - begin, words, {row + begin, count * width_});
        }
    }

    // Rows i of images [n0, n1).
    void convolve(i64 n0, i64 n1, i64 group, i64 i0, i64 i1, i32* amax) const {
        const Reduction& plan = *plans_[group];
        const i64 from = i0 * rows_.src_step + rows_.low;
        const i64 count = (i1 - 1 - i0) * rows_.src_step + rows_.high - rows_.low + 1;
        const i64 h0 = i0 * rows_.step, h1 = std::min(i1 * rows_.step, rows_.dst), pixels = (h1 - h0) * cols_.dst;
        const i64 image_words = count * width_ * plan.words(), image_sums = pixels * padded_;
        i32* source = scratch<i32>(Slot::left, (n1 - n0) * image_words);
        for (i64 n = n0; n < n1; ++n) pack_source(plan, n, group, from, count, source + (n - n0) * image_words);
        // NHWC floats are finished tile by tile; sums of other outputs wait for whole rows of pixels.
        const bool by_tile = finishes_by_tile();
        const i64 sum_bytes = call_.wide ? 8 : 4, kept = by_tile ? 0 : (n1 - n0) * image_sums;
        u8* sums = static_cast<u8*>(scratch(Slot::sums, static_cast<size_t>(sum_bytes * kept)));
        const std::vector<Epilogue> epilogues = make_epilogues(n0, n1, group, amax);

        const i64 pixel = 4 * (pixel_major_ ? plan.words() : 1), line = width_ * pixel;  // bytes
        std::vector<i64> a_off, b_off;
        for (size_t ph = 0; ph < phases_.size(); ++ph) {
            const PhasePair& phase = phases_[ph];
            if (zeros_between_ && !phase.taps()) continue;
            const Packed& packed = packed_[group * phases_.size() + ph];
            const i64 height = std::min(i1, phase.rows->count) - i0;
            a_off.clear();
            for (const Phase::Tap& r : phase.rows->taps)
                for (const Phase::Tap& s : phase.cols->taps)
                    a_off.push_back((r.offset - rows_.low) * line + (s.offset - cols_.low) * pixel);
            const std::vector<i64> a_segments = every(a_off, packed.run);
            for (i64 panel = 0; panel < panels_; ++panel) {
                const i64 ld = panel_width(panel), first = panel * nr_;
                b_off.clear();
                for (i64 tap = 0; tap < phase.taps(); ++tap) b_off.push_back(tap * plan.words() * ld);
                const std::vector<i64> b_segments = every(b_off, packed.run);
                Tile t{};
                t.b = packed.words + first * phase.taps() * plan.words();
                t.b_step = ld;
                t.a_row = cols_.src_step * pixel;
                t.a_step = pixel_major_ ? 4 : 4 * count * width_;
                t.exact = plan.exact();
                t.a_off = a_segments.data();
                t.b_off = b_segments.data();
                for (i64 i = 0; i < n1 - n0; ++i) {
                    const i64 pixel0 = phase.rows->first * cols_.dst + phase.cols->first;
                    Target to{nullptr, padded_, epilogues[i]};
                    if (by_tile)
                        to = {output(n0 + i, group, h0 * cols_.dst + pixel0) + first * call_.element(), channels_,
                              part(epilogues[i], first, std::min(nr_, window_.targets - first))};
                    else
                        to.at = sums + sum_bytes * (i * image_sums + pixel0 * padded_ + first);
                    tiles(plan, packed, phase, t, reinterpret_cast<const u8*>(source + i * image_words), height,
                          static_cast<int>(ld / k_.lanes), first, to);
                }
            }
        }
        for (i64 n = n0; !by_tile && n < n1; ++n) {
            Finish f{sums + sum_bytes * (n - n0) * image_sums, call_.wide != 0, padded_, pixels, epilogues[n - n0],
                     output(n, group, h0 * cols_.dst), 1, rows_.dst * cols_.dst};
            if (call_.channels_last) f.out_row = channels_, f.out_col = 1;
            k_.finish(f);
        }
    }

    bool finishes_by_tile() const { return call_.channels_last && !call_.sums_only(); }

    // Where tiles of a panel go: an NHWC output, or sums that k_.finish takes.
    struct Target {
        void* at;
        i64 pixel;  // from one pixel to the next, in elements
        Epilogue epilogue;
    };

    // A pixel of the output of a group, at its first channel.
    u8* output(i64 image, i64 group, i64 pixel) const {
        const i64 plane = rows_.dst * cols_.dst, first = group * window_.targets;
        return call_.at(call_.channels_last ? (image * plane + pixel) * channels_ + first
                                            : (image * channels_ + first) * plane + pixel);
    }

    static Epilogue part(Epilogue e, i64 first, i64 cols) {
        return {nullptr, e.col_scale + first, e.bias ? e.bias + first : nullptr, e.amax ? e.amax + first : nullptr,
                cols, e.half};
    }

    // Of each image: a scale may differ between them.
    std::vector<Epilogue> make_epilogues(i64 n0, i64 n1, i64 group, i32* amax) const {
        const i64 first = group * window_.targets, sets = call_.scale_stride[0] ? n1 - n0 : 1;
        float* scale = scratch<float>(Slot::scale, (sets + 1) * padded_);
        float* bias = scale + sets * padded_;
        const float* given = reinterpret_cast<const float*>(call_.bias);
        std::vector<Epilogue> all;
        for (i64 d = 0; given && d < padded_; ++d) bias[d] = given[first + std::min(d, window_.targets - 1)];
        for (i64 i = 0; i < n1 - n0; ++i) {
            float* own = call_.sums_only() ? nullptr : scale + (i < sets ? i : 0) * padded_;
            for (i64 d = 0; own && i < sets && d < padded_; ++d)
                own[d] = call_.scales()[(n0 + i) * call_.scale_stride[0] +
                                        (first + std::min(d, window_.targets - 1)) * call_.scale_stride[1]];
            all.push_back({nullptr, own, given ? bias : nullptr, amax ? amax + group * padded_ : nullptr,
                           window_.targets, call_.half != 0});
        }
        return all;
    }

    // All tiles of one panel and phase. Images 4 pixels wide fill a tile with several rows.
    void tiles(const Reduction& plan, const Packed& packed, const PhasePair& phase, Tile t, const u8* source,
               i64 height, int vectors, i64 first, const Target& to) const {
        const i64 source_line = rows_.src_step * width_ * t.a_row / cols_.src_step, row = cols_.step * to.pixel,
                  line = rows_.step * cols_.dst * to.pixel;  // rows of a tile and lines of the image, from to.at on
        const bool narrow = phase.cols->count == 4;
        const i64 group = narrow ? line : 4 * row, columns = vectors * k_.lanes;
        t.a_group = narrow ? source_line : 4 * t.a_row;
        const i64 mr = k_.rows[vectors - 1];
        const i64 lines = narrow ? 1 : height, run = narrow ? 4 * height : phase.cols->count;
        const i64 tile_rows = narrow ? 4 * balanced(height, mr / 4) : balanced(run, mr);
        const Correction correct(k_, plan);
        std::vector<i32> row_sums(correct.has_rows() ? packed.chunks.size() * kMaxRows : 0);
        const bool by_tile = finishes_by_tile(), at_once = in_one_run(packed.chunks, call_.wide, correct);
        const i64 element = by_tile ? call_.element() : 4;  // of what to.at takes at once
        alignas(64) i64 buffer[kMaxRows * kMaxVectors * kMaxLanes];
        const bool direct = at_once || !by_tile;
        t.c_row = direct ? row : columns;
        t.c_group = direct ? group : 4 * columns;
        if (at_once) {  // the same call again and again: only where it reads and writes changes
            t = chunk_tile(t, packed.chunks[0]);
            t.init = packed.init + first;
            if (by_tile) t.epilogue = &to.epilogue;
            t.stream = stream_;
        }
        for (i64 i = 0; i < lines; ++i)
            for (i64 j = 0; j < run; j += tile_rows) {
                const int rows = static_cast<int>(std::min(tile_rows, run - j));
                t.a = source + i * source_line + (narrow ? j / 4 * t.a_group : j * t.a_row);
                const i64 at = i * line + (narrow ? j / 4 * group : j * row);
                if (at_once) {
                    t.c = reinterpret_cast<i32*>(static_cast<u8*>(to.at) + element * at);
                    k_.tile[vectors - 1][rows - 1](t);
                    continue;
                }
                void* acc =
                    direct ? static_cast<u8*>(to.at) + (call_.wide ? 8 : 4) * at : reinterpret_cast<u8*>(buffer);
                for (size_t ch = 0; ch * kMaxRows < row_sums.size(); ++ch)
                    correct.rows(chunk_tile(t, packed.chunks[ch]), rows, &row_sums[ch * kMaxRows]);
                run_chunks(k_, packed.chunks, call_.wide, t, rows, vectors, acc, packed.init + first, padded_,
                           row_sums.empty() ? nullptr : row_sums.data());
                for (i64 r = 0, some = narrow ? 4 : rows; !direct && r < rows; r += some)
                    k_.finish({reinterpret_cast<u8*>(buffer) + (call_.wide ? 8 : 4) * r * columns, call_.wide != 0,
                               columns, some, to.epilogue,
                               static_cast<u8*>(to.at) + element * (at + r / 4 * group), row, 1});
            }
    }

    const ConvCall& call_;
    const ProductKernels& k_;
    Window window_;
    const WindowAxis &rows_, &cols_;
    int threads_;
    i64 nr_, padded_, panels_, width_, channels_;
    bool pixel_major_, zeros_between_ = false, stream_ = false;
    std::vector<std::unique_ptr<Reduction>> plans_;
    std::vector<PhasePair> phases_;
    std::vector<Packed> packed_;
};

const char* run(const void* arguments, bool backward, ProductOps& ops, int threads) {
    const ConvCall& call = *static_cast<const ConvCall*>(arguments);
    const i64 work = call.n * call.p * call.q * call.o * (call.c / call.groups) * call.r * call.s;
    threads = useful_threads(threads, work, kGrain);
    if (by_planes(call)) return window_by_planes(call, backward, threads);
    if (const char* name = by_winograd(call, backward, threads)) return name;
    const auto kernel = best_products(ops, call.a.format(), call.b.format(),
                                      call.a.max_shift + call.b.max_shift);
    const ConvCall same = regrouped(call, backward ? Role::grad_input : Role::output, threads);
    Convolution(same, backward, *kernel.table, threads).run();
    return kernel.name;
}

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_conv2d(const void* call, int threads) {
    return sb::run(call, false, sb::output_ops, threads);
}
SB_EXPORT const char* sb_conv2d_grad_input(const void* call, int threads) {
    return sb::run(call, true, sb::grad_input_ops, threads);
}
