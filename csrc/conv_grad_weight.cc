// sb_conv2d_grad_weight: dw[o, c, r, s] = sum over n, p, q of g[n, o, p, q] x[n, c, h, w]
//                        with h = p stride + r dilation - padding, w likewise from q and s
//
// The reduction runs along rows of pixels, so a word holds neighbouring pixels of one channel. x lies as planes with
// their borders, the left operand: a tap (r, s) is nothing but another address, at any element. g is the right operand.
// With a stride, x is split into the planes of every stride-th column. A task takes a block of images, packs them, and
// adds to its worker's own sums, [input][tap][output]; these are added at the end, in integers: no result depends on
// who did what.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "conv.h"
#include "cpu_features.h"
#include "parallel.h"

namespace sb {
namespace {

ProductOps ops{"conv2d_grad_weight", "conv2d_few_bits_grad_weight"};

constexpr i64 kTaskBytes = 512 << 10;  // packed operands of a task: half of the second cache, or a part of a large dw
constexpr i64 kSetWords = 1024;        // words after which addresses meet in the same set of the first cache
constexpr i64 kSumsBytes = 256 << 20;  // of all workers' dw together; fewer workers beyond
constexpr i64 kGrain = 1 << 18;        // multiply-accumulates below which a second thread costs more than it saves
constexpr i64 kFinishRows = 16;        // input channels of dw in a task that brings it into its order

struct Block {  // images [n0, n1), rows [p0, p1) of g; all these images have the same left shift
    i64 n0, n1, p0, p1;
    int left;
};

i64 floor_div(i64 a, i64 b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

class GradWeight {
public:
    GradWeight(const ConvCall& call, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), inputs_(call.c / call.groups), outputs_(call.o / call.groups),
          nr_(2 * kernels.lanes), padded_(round_up<i64>(outputs_, kernels.lanes)), taps_(call.r * call.s),
          q_words_(ceil_div<i64>(call.q, kernels.per_word)) {
        low_ = 0;
        i64 high = 0;
        for (i64 s = 0; s < call.s; ++s) {
            const i64 at = s * call.dilation[1] - call.padding[1], offset = floor_div(at, call.stride[1]);
            low_ = s ? std::min(low_, offset) : offset;
            high = s ? std::max(high, offset) : offset;
            columns_.push_back({offset, static_cast<i64>(split_.size())});
            const i64 column = at - offset * call.stride[1];
            const auto known = std::find(split_.begin(), split_.end(), column);
            if (known == split_.end())
                split_.push_back(column);
            else
                columns_.back().split = known - split_.begin();
        }
        line_ = q_words_ + ceil_div<i64>(high - low_, k_.per_word);
        size_ = call.groups * taps_ * inputs_ * padded_;
        element_ = call.wide ? 8 : 4;
        threads_ = static_cast<int>(std::clamp<i64>(kSumsBytes / std::max<i64>(1, size_ * element_), 1, threads));
    }

    // False where one row of pixels may leave int32.
    bool run() {
        const std::vector<int> left = left_shifts(call_.n, call_.a.exponents(), static_cast<int>(call_.a.max_shift),
                                                  call_.b.exponents(), static_cast<int>(call_.b.max_shift));
        if (size_ == 0) return true;
        if (call_.n * call_.p * call_.q > 0 && !make_blocks(left)) return false;
        sums_ = static_cast<u8*>(scratch(Slot::sums, static_cast<size_t>(threads_ * size_ * element_)));
        used_.assign(static_cast<size_t>(threads_), 0);
        parallel(threads_, static_cast<i64>(blocks_.size()), [&](i64 task, int worker) {
            u8* sums = sums_ + worker * size_ * element_;
            if (!used_[worker]) std::memset(sums, 0, static_cast<size_t>(size_ * element_));
            used_[worker] = 1;
            for (i64 g = 0; g < call_.groups; ++g)
                add(blocks_[task], g, sums + g * taps_ * inputs_ * padded_ * element_);
        });
        const i64 parts = ceil_div(inputs_, kFinishRows);
        parallel(useful_threads(threads_, size_, kGrain), call_.groups * parts, [&](i64 task, int) {
            const i64 c0 = task % parts * kFinishRows;
            finish(task / parts, c0, std::min(c0 + kFinishRows, inputs_));
        });
        return true;
    }

private:
    struct Column {
        i64 offset, split;  // tap s reads plane `split` from this offset on
    };

    i64 source_rows(i64 rows) const { return (rows - 1) * call_.stride[0] + (call_.r - 1) * call_.dilation[0] + 1; }
    // Words from one channel's plane to the next; off the period of a cache set, since a tile reads many channels at
    // once.
    i64 plane(i64 rows) const {
        const i64 words = source_rows(rows) * line_;
        return words >= kSetWords / 4 && words % 64 < 16 ? words + 16 : words;
    }
    i64 image_words(i64 rows) const { return static_cast<i64>(split_.size()) * inputs_ * plane(rows); }

    bool make_blocks(const std::vector<int>& left) {
        const i64 positions = k_.per_word * std::max(source_rows(call_.p) * line_, q_words_ * call_.p);
        plans_[0] = nullptr;
        for (int shift : left) plans_[shift] = nullptr;
        if (!left.empty() && std::find(left.begin(), left.end(), 0) == left.end()) plans_.erase(0);
        i64 longest = call_.p * call_.q * call_.n;
        for (auto& [shift, plan] : plans_) {
            const std::vector<int> all(shift ? static_cast<size_t>(positions) : 0, shift);
            plan = std::make_unique<Reduction>(k_, positions, all, call_.b.format(), call_.a.format(), call_.wide);
            if (call_.wide) longest = std::min(longest, plan->longest_exact());
        }
        const i64 exact_rows = longest / call_.q;
        if (exact_rows < 1) return false;
        const i64 image = 4 * (image_words(call_.p) + call_.p * q_words_ * padded_);
        const i64 share = ceil_div<i64>(call_.n, threads_);
        const i64 budget = std::max(kTaskBytes, size_ * element_ / 4);  // every task reads and writes all of dw
        const i64 most = std::clamp<i64>(std::min(budget / image, exact_rows / call_.p), 1, share);
        // As many blocks for each thread: it is the last one that all wait for.
        const i64 images = ceil_div(call_.n, round_up<i64>(ceil_div(call_.n, most), threads_));
        const i64 rows = std::clamp<i64>(std::min(call_.p * budget / image, exact_rows), 1, call_.p);
        for (i64 n0 = 0; n0 < call_.n;) {
            const int shift = left.empty() ? 0 : left[n0];
            i64 n1 = n0 + 1;
            while (n1 < call_.n && n1 - n0 < images && (left.empty() || left[n1] == shift)) ++n1;
            for (i64 p = 0; p < call_.p; p += balanced(call_.p, rows))
                blocks_.push_back({n0, n1, p, std::min(p + balanced(call_.p, rows), call_.p), shift});
            n0 = n1;
        }
        return true;
    }

    // x of a block: [image][split][channel][row][word]
    const u8* pack_source(const Reduction& plan, const Block& block, i64 group) const {
        const i64 rows = source_rows(block.p1 - block.p0), ld = plane(block.p1 - block.p0), *stride = call_.b.stride;
        i32* const begin = scratch<i32>(Slot::left, (block.n1 - block.n0) * image_words(block.p1 - block.p0));
        i32* to = begin;
        if (stride[1] == 1 && stride[3] != 1 && rows_touch(call_.b, call_.h, call_.w)) {
            pack_pixels(plan, block, group, to);
            return reinterpret_cast<const u8*>(begin);
        }
        for (i64 n = block.n0; n < block.n1; ++n)
            for (i64 column : split_) {
                const i64 first = low_ * call_.stride[1] + column;
                const u8* data = call_.b.codes() + n * stride[0] + group * inputs_ * stride[1] + first * stride[3];
                Codes codes = plan.left_codes(data, stride[1], call_.stride[1] * stride[3]);
                codes.first = std::max<i64>(0, floor_div(-first + call_.stride[1] - 1, call_.stride[1]));
                codes.last = std::max(codes.first, floor_div(call_.w - first + call_.stride[1] - 1, call_.stride[1]));
                for (i64 i = 0; i < rows; ++i) {
                    const i64 h = block.p0 * call_.stride[0] - call_.padding[0] + i;
                    Codes row = codes;
                    if (h < 0 || h >= call_.h)
                        row.last = row.first;
                    else
                        row.data += h * stride[2];
                    k_.encode_rows(row, inputs_, line_, to + i * line_, ld);
                }
                to += inputs_ * ld;
            }
        return reinterpret_cast<const u8*>(begin);
    }

    // The same of pixels whose rows follow each other: all rows of a plane at once, so that short ones fill vectors.
    void pack_pixels(const Reduction& plan, const Block& block, i64 group, i32* to) const {
        const i64 rows = source_rows(block.p1 - block.p0), ld = plane(block.p1 - block.p0), words = rows * line_;
        const std::vector<i32> order = pixels_of(rows, block.p0);
        for (i64 n = block.n0; n < block.n1; ++n) {
            const u8* data = call_.b.codes() + n * call_.b.stride[0] + group * inputs_;
            Codes codes = plan.left_codes(data, 1, call_.b.stride[3]);
            codes.first = 0, codes.last = call_.h * call_.w;
            for (size_t s = 0; s < split_.size(); ++s, to += inputs_ * ld) {
                codes.order = &order[s * static_cast<size_t>(words * k_.per_word)];
                k_.encode_rows(codes, inputs_, words, to, ld);
            }
        }
    }

    // The pixel of x at each place of its planes, [split][row][element of a word]; -1 beyond the border.
    std::vector<i32> pixels_of(i64 rows, i64 p0) const {
        std::vector<i32> pixels;
        for (i64 column : split_)
            for (i64 i = 0; i < rows; ++i) {
                const i64 h = p0 * call_.stride[0] - call_.padding[0] + i;
                for (i64 j = 0; j < line_ * k_.per_word; ++j) {
                    const i64 w = (low_ + j) * call_.stride[1] + column;
                    const bool inside = h >= 0 && h < call_.h && w >= 0 && w < call_.w;
                    pixels.push_back(inside ? static_cast<i32>(h * call_.w + w) : -1);
                }
            }
        return pixels;
    }

    // g of a block and panel: [image][row][word][output]
    // Whole panels at once, `step` words apart, or a part of one.
    void pack_gradient(
        const Reduction& plan, const Block& block, i64 channel, i64 n, i32* to, i64 ld, i64 step) const {
        const i64 *stride = call_.a.stride, rows = block.p1 - block.p0;
        const bool together = stride[2] == call_.q * stride[3] && call_.q % k_.per_word == 0;
        const i64 runs = together ? 1 : rows, words = together ? rows * q_words_ : q_words_;
        for (i64 image = block.n0; image < block.n1; ++image)
            for (i64 i = 0; i < runs; ++i) {
                const u8* data = call_.a.codes() + image * stride[0] + channel * stride[1] + (block.p0 + i) * stride[2];
                Codes codes = plan.right_codes(data, stride[1], stride[3]);
                codes.last = together ? rows * call_.q : call_.q;
                k_.encode_columns(codes, n, words, {to, ld, ld, step});
                to += words * ld;
            }
    }

    void add(const Block& block, i64 group, u8* sums) const {
        const Reduction& plan = *plans_.at(block.left);
        const i64 rows = block.p1 - block.p0, images = block.n1 - block.n0, row_bytes = 4 * call_.stride[0] * line_;
        const u8* source = pack_source(plan, block, group);
        // Where the rows of both operands follow each other alike, an image is one segment.
        const bool merged = call_.stride[0] * line_ == q_words_;
        const i64 runs = merged ? 1 : rows, steps = merged ? rows * q_words_ : q_words_;
        std::vector<i64> a_off, b_off;
        for (i64 n = 0; n < images; ++n)
            for (i64 p = 0; p < runs; ++p) a_off.push_back(4 * n * image_words(rows) + p * row_bytes);
        const i64 words = images * rows * q_words_, whole = outputs_ / nr_ * nr_;
        i32* gradient = scratch<i32>(Slot::extra, words * padded_);
        if (whole) pack_gradient(plan, block, group * outputs_, whole, gradient, nr_, words * nr_);
        if (whole < outputs_)
            pack_gradient(
                plan, block, group * outputs_ + whole, outputs_ - whole, gradient + words * whole, padded_ - whole, 0);
        for (i64 first = 0; first < padded_; first += nr_) {
            const i64 ld = std::min(nr_, padded_ - first);
            b_off.clear();
            for (size_t i = 0; i < a_off.size(); ++i) b_off.push_back(static_cast<i64>(i) * steps * ld);
            Tile t{};
            t.b = gradient + words * first;
            t.b_step = ld;
            t.a_row = 4 * plane(rows);
            t.a_group = 4 * t.a_row;
            t.a_step = 4;
            t.a_off = a_off.data();
            t.b_off = b_off.data();
            t.exact = plan.exact();
            t.segments = static_cast<i64>(a_off.size());
            t.steps = steps;
            add_panel(plan, t, source, rows, ld, sums + first * element_);
        }
    }

    void add_panel(const Reduction& plan, Tile t, const u8* source, i64 rows, i64 ld, u8* sums) const {
        const int vectors = static_cast<int>(ld / k_.lanes), shift = plan.chunks(1).back().shift;
        const i64 height = balanced(inputs_, k_.rows[vectors - 1]);
        const bool direct = !call_.wide && shift == 0;
        const Correction correct(k_, plan);
        alignas(64) i32 init[kMaxVectors * kMaxLanes], tile[kMaxRows * kMaxVectors * kMaxLanes];
        i32 row_sums[kMaxRows];
        correct.columns(t, ld, init);
        t.init = init;
        t.accumulate = direct && !correct.has_rows();
        t.c_row = t.accumulate ? taps_ * padded_ : ld;
        t.c_group = 4 * t.c_row;
        for (i64 r = 0; r < call_.r; ++r)
            for (i64 s = 0; s < call_.s; ++s) {
                const u8* tap = source +
                                4 * (columns_[s].split * inputs_ * plane(rows) + r * call_.dilation[0] * line_) +
                                (columns_[s].offset - low_) * 4 / k_.per_word;
                for (i64 c = 0; c < inputs_; c += height) {
                    const int count = static_cast<int>(std::min(height, inputs_ - c));
                    u8* to = sums + (c * taps_ + r * call_.s + s) * padded_ * element_;
                    t.a = tap + c * t.a_row;
                    t.c = t.accumulate ? reinterpret_cast<i32*>(to) : tile;
                    k_.tile[vectors - 1][count - 1](t);
                    if (t.accumulate) continue;
                    std::memset(row_sums, 0, sizeof row_sums);
                    if (correct.has_rows()) correct.rows(t, count, row_sums);
                    for (int i = 0; i < count; ++i) {
                        u8* row = to + i * taps_ * padded_ * element_;
                        if (call_.wide)
                            add_tile(reinterpret_cast<i64*>(row), tile + i * ld, ld, row_sums[i], shift);
                        else
                            add_tile(reinterpret_cast<i32*>(row), tile + i * ld, ld, row_sums[i], shift);
                    }
                }
            }
    }

    template <class Acc>
    static void add_tile(Acc* to, const i32* tile, i64 n, i32 row_sum, int shift) {
        for (i64 j = 0; j < n; ++j) to[j] += static_cast<Acc>(tile[j] + row_sum) << shift;
    }

    // All workers' sums of input channels [c0, c1) -> dw.
    void finish(i64 group, i64 c0, i64 c1) const {
        const i64 at = (group * inputs_ + c0) * taps_ * padded_, n = (c1 - c0) * taps_ * padded_;
        u8* total = sums_ + at * element_;
        if (!used_[0]) std::memset(total, 0, static_cast<size_t>(n * element_));
        for (int worker = 1; worker < threads_; ++worker) {
            if (!used_[worker]) continue;
            const u8* part = total + worker * size_ * element_;
            if (call_.wide)
                add_row(reinterpret_cast<i64*>(total), reinterpret_cast<const i64*>(part), n);
            else
                add_row(reinterpret_cast<i32*>(total), reinterpret_cast<const i32*>(part), n);
        }
        // A scale that differs along the inputs as well is a column of its own for each of them.
        const i64 rows = call_.scale_stride[1] ? 1 : c1 - c0, first = group * outputs_;
        float* scale = call_.sums_only() ? nullptr : scratch<float>(Slot::scale, padded_);
        for (i64 c = c0; c < c1; c += rows) {
            for (i64 o = 0; scale && o < padded_; ++o)
                scale[o] = call_.scales()[(first + std::min(o, outputs_ - 1)) * call_.scale_stride[0] +
                                          c * call_.scale_stride[1]];
            u8* sums = total + (c - c0) * taps_ * padded_ * element_;
            Finish f{sums, call_.wide != 0, padded_, rows * taps_, {nullptr, scale, nullptr, nullptr, outputs_, false},
                     call_.at((first * inputs_ + c) * taps_), 1, inputs_ * taps_};
            if (!call_.channels_last) {
                k_.finish(f);
                continue;
            }
            f.acc_row = taps_ * padded_, f.rows = rows;
            for (i64 tap = 0; tap < taps_; ++tap) {  // (O, taps, C/groups)
                f.acc = sums + tap * padded_ * element_;
                f.out = call_.at((first * taps_ + tap) * inputs_ + c);
                k_.finish(f);
            }
        }
    }

    template <class Acc>
    static void add_row(Acc* to, const Acc* from, i64 n) {
        for (i64 j = 0; j < n; ++j) to[j] += from[j];
    }

    const ConvCall& call_;
    const ProductKernels& k_;
    i64 inputs_, outputs_, nr_, padded_, taps_, q_words_;
    i64 low_, line_;      // the smallest offset of a tap; words in a row of a plane of x
    i64 size_, element_;  // of one worker's dw, in sums; bytes in a sum
    int threads_;
    std::vector<Column> columns_;
    std::vector<i64> split_;
    std::map<int, std::unique_ptr<Reduction>> plans_;  // by left shift
    std::vector<Block> blocks_;
    u8* sums_ = nullptr;
    std::vector<char> used_;
};

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_conv2d_grad_weight(const void* arguments, int threads) {
    using namespace sb;
    const ConvCall& call = *static_cast<const ConvCall*>(arguments);
    const i64 work = call.n * call.p * call.q * call.o * (call.c / call.groups) * call.r * call.s;
    threads = useful_threads(threads, work, kGrain);
    if (by_planes(call)) return grad_weight_by_planes(call, threads);
    if (const char* name = grad_weight_of_few_pixels(call, threads)) return name;
    const auto kernel = best_products(ops, call.b.format(), call.a.format(), call.a.max_shift + call.b.max_shift);
    const ConvCall same = regrouped(call, Role::grad_weight, threads);
    return GradWeight(same, *kernel.table, threads).run() ? kernel.name : nullptr;
}
