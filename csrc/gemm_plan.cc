// See gemm_plan.h.
#include "gemm_plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace sb {
namespace {

constexpr i64 kInt32Limit = (i64{1} << 31) - 1;

constexpr i64 kLeastExact = 2;  // steps in 16 bits that few_bits needs

u8 power(int shift) { return static_cast<u8>(1 << shift); }

// The largest byte of a left operand that 16-bit sums take, and by how much it is moved up to be unsigned.
i32 lift_of_few(Format a, int shift) { return a.is_signed ? 1 << (a.bits - 1 + shift) : 0; }
i64 exact_steps(Format a, int on_a, Format b, int on_b) {
    const i64 most = (i64{a.qmax()} << on_a) + lift_of_few(a, on_a);
    return kInt16Limit / (2 * most * (i64{b.qmax()} << on_b));
}

}  // namespace

std::vector<int> left_shifts(i64 k, const u8* ea, int max_a, const u8* eb, int max_b) {
    if (!ea && !eb) return {};
    std::vector<int> left(static_cast<size_t>(k));
    for (i64 i = 0; i < k; ++i) left[i] = (ea ? max_a - ea[i] : 0) + (eb ? max_b - eb[i] : 0);
    return left;
}

Reduction::Reduction(const ProductKernels& kernels, i64 k, const std::vector<int>& left, Format a, Format b, bool wide)
    : k_(k), per_word_(kernels.per_word), wide_(wide) {
    int on_a = 0, on_b = 0, most_rest = 0, least_rest = left.empty() ? 0 : 1 << 10;
    std::vector<int> rest(left.size());
    factor_a_.assign(left.size(), 1);
    factor_b_.assign(left.size(), 1);
    for (size_t i = 0; i < left.size(); ++i) {
        const int x = std::min(left[i], a.room()), y = std::min(left[i] - x, b.room());
        factor_a_[i] = power(x);
        factor_b_[i] = power(y);
        rest[i] = left[i] - x - y;
        on_a = std::max(on_a, x);
        on_b = std::max(on_b, y);
        most_rest = std::max(most_rest, rest[i]);
        least_rest = std::min(least_rest, rest[i]);
    }
    exact_ = kernels.few_bits ? exact_steps(a, on_a, b, on_b) : 0;
    longest_ = kInt32Limit / ((i64{a.qmax()} << on_a) * (i64{b.qmax()} << on_b));
    a_ = side(kernels, kernels.left_is_s8, a, on_a);
    b_ = side(kernels, true, b, on_b);

    if (most_rest == least_rest || left.empty()) {  // in its own order
        words_ = ceil_div<i64>(k, per_word_);
        factor_a_.resize(left.empty() ? 0 : words_ * per_word_, 1);
        factor_b_.resize(left.empty() ? 0 : words_ * per_word_, 1);
        groups_ = {{0, words_, most_rest}};
        return;
    }
    Lines<u8> fa, fb;
    for (int r = most_rest; r >= least_rest; --r) {
        const i64 begin = static_cast<i64>(order_.size());
        for (i64 i = 0; i < k; ++i)
            if (rest[i] == r) {
                order_.push_back(static_cast<i32>(i));
                fa.push_back(factor_a_[i]);
                fb.push_back(factor_b_[i]);
            }
        const i64 size = static_cast<i64>(order_.size());
        if (size == begin) continue;
        order_.resize(round_up<i64>(size, per_word_), -1);
        groups_.push_back({begin / per_word_, (static_cast<i64>(order_.size()) - begin) / per_word_, r});
        fa.resize(order_.size(), 1);
        fb.resize(order_.size(), 1);
    }
    words_ = static_cast<i64>(order_.size()) / per_word_;
    factor_a_ = fa;
    factor_b_ = fb;
}

// s8 becomes u8 where bytes have to be; u8 becomes s8 where they have to be, unless it is one already.
Reduction::Side Reduction::side(const ProductKernels& kernels, bool wants_s8, Format codes, int folded) {
    const bool lift = kernels.bytes() && !wants_s8 && codes.is_signed;
    const bool lower = kernels.bytes() && wants_s8 && !codes.is_signed && codes.bits + folded > 7;
    const i32 up = kernels.few_bits ? lift_of_few(codes, folded) : kOffset;
    return {codes.is_signed != 0, lift ? up : lower ? -kOffset : 0};
}

Codes Reduction::codes(const Side& side, const Lines<u8>& factor, const void* data, i64 outer, i64 inner) const {
    return {static_cast<const u8*>(data),
            outer,
            inner,
            0,
            k_,
            side.is_signed,
            static_cast<u8>(side.offset),
            factor.empty() ? nullptr : factor.data(),
            order_.empty() ? nullptr : order_.data()};
}

std::vector<Chunk> Reduction::chunks(i64 segments) const {
    std::vector<Chunk> result;
    for (size_t g = 0; g < groups_.size(); ++g) {
        const Group& group = groups_[g];
        const int shift = group.rest - (g + 1 < groups_.size() ? groups_[g + 1].rest : 0);
        // Where the whole sum fits, so does every Horner group modulo 2^32, and nothing is cut.
        const i64 per_tap = group.words * per_word_;
        const i64 taps = !wide_ || per_tap == 0 ? segments : std::max<i64>(1, std::min(segments, longest_ / per_tap));
        const i64 words = !wide_ ? group.words : std::max<i64>(1, std::min(group.words, longest_ / (taps * per_word_)));
        for (i64 w = 0; w < std::max<i64>(group.words, 1); w += std::max<i64>(words, 1))
            for (i64 s = 0; s < std::max<i64>(segments, 1); s += std::max<i64>(taps, 1))
                result.push_back(
                    {group.word + w, std::min(words, group.words - w), s, std::min(taps, segments - s), 0});
        result.back().shift = shift;
    }
    return result;
}

Op<ProductKernels>::Best best_products(ProductOps& ops, Format a, Format b, i64 shift) {
    const auto kernel = ops.any.best(), small = ops.few_bits.best();
    if (kernel.table->bytes() || !small.table || shift > a.room() + b.room()) return kernel;
    const int on_a = std::min<int>(static_cast<int>(shift), a.room()), on_b = static_cast<int>(shift) - on_a;
    const bool signed_bytes = b.is_signed || b.bits + on_b <= 7;
    return signed_bytes && exact_steps(a, on_a, b, on_b) >= kLeastExact ? small : kernel;
}

Correction::Correction(const ProductKernels& kernels, const Reduction& reduction)
    : kernels_(kernels), left_(reduction.left_offset()), right_(reduction.right_offset()) {}

// sum (a - la)(b - lb) = sum a b - la sum b - lb sum a + n la lb: the two plain sums are products with ones.
void Correction::columns(Tile t, i64 columns, i32* init) const {
    static const i32 zeros[kMaxLanes * kMaxVectors] = {};
    std::memset(init, 0, static_cast<size_t>(columns) * sizeof *init);
    if (left_ == 0) return;
    const i32 ones = 0x01010101;
    const std::vector<i64> at_ones(static_cast<size_t>(t.segments), 0);
    t.a = reinterpret_cast<const u8*>(&ones);
    t.a_off = at_ones.data();
    t.a_row = t.a_group = t.a_step = 0;
    t.init = zeros;
    t.accumulate = false;
    t.c_row = t.c_group = 0;
    t.c = init;
    const int vectors = static_cast<int>(columns / kernels_.lanes);
    kernels_.tile[vectors - 1][0](t);
    const i32 both = static_cast<i32>(t.segments * t.steps * kernels_.per_word) * left_ * right_;
    for (i64 j = 0; j < columns; ++j) init[j] = both - left_ * init[j];
}

void Correction::rows(Tile t, int rows, i32* sums) const {
    alignas(64) i32 ones[kMaxLanes], square[kMaxRows * kMaxLanes];
    static const i32 zeros[kMaxLanes] = {};
    std::fill(ones, ones + kMaxLanes, 0x01010101);
    const std::vector<i64> at_ones(static_cast<size_t>(t.segments), 0);
    t.b = ones;
    t.b_off = at_ones.data();
    t.b_step = 0;
    t.init = zeros;
    t.accumulate = false;
    t.c = square;
    t.c_row = kernels_.lanes;
    t.c_group = 4 * kernels_.lanes;
    kernels_.tile[0][rows - 1](t);
    for (int i = 0; i < rows; ++i) sums[i] = -right_ * square[i * kernels_.lanes];
}

Tile chunk_tile(Tile t, const Chunk& chunk) {
    t.a += chunk.word * t.a_step;
    t.b += chunk.word * t.b_step;
    t.a_off += chunk.segment;
    t.b_off += chunk.segment;
    t.segments = chunk.segments;
    t.steps = chunk.words;
    return t;
}

void run_chunks(const ProductKernels& k, const std::vector<Chunk>& chunks, bool wide, Tile t, int rows, int vectors,
                void* acc, const i32* init, i64 init_ld, const i32* row_sums) {
    const TileFn run = k.tile[vectors - 1][rows - 1];
    const i64 columns = static_cast<i64>(vectors) * k.lanes;
    const auto add_row_sums = [&](const Tile& part, size_t chunk) {
        for (int i = 0; row_sums && i < rows; ++i) {
            i32* row = part.c + (i / 4) * part.c_group + (i % 4) * part.c_row;
            for (i64 j = 0; j < columns; ++j) row[j] += row_sums[chunk * kMaxRows + i];
        }
    };
    if (chunks.size() == 1 && !wide && chunks[0].shift == 0) {
        Tile part = chunk_tile(t, chunks[0]);
        part.init = init;
        part.c = static_cast<i32*>(acc);
        run(part);
        add_row_sums(part, 0);
        return;
    }
    alignas(64) i32 sums[kMaxRows * kMaxVectors * kMaxLanes];
    for (size_t ch = 0; ch < chunks.size(); ++ch) {
        Tile part = chunk_tile(t, chunks[ch]);
        part.init = init + static_cast<i64>(ch) * init_ld;
        part.c = sums;
        part.c_row = columns;
        part.c_group = 4 * columns;
        run(part);
        add_row_sums(part, ch);
        for (int i = 0; i < rows; ++i) {
            const i64 at = (i / 4) * t.c_group + (i % 4) * t.c_row;
            void* out = wide ? static_cast<void*>(static_cast<i64*>(acc) + at) : static_cast<i32*>(acc) + at;
            k.combine(out, wide, sums + i * columns, columns, ch == 0, chunks[ch].shift);
        }
    }
}

void* scratch(Slot slot, size_t bytes) {
    struct Arena {
        void* block[static_cast<int>(Slot::count)] = {};
        size_t size[static_cast<int>(Slot::count)] = {};
        ~Arena() {
            for (void* b : block) std::free(b);
        }
    };
    thread_local Arena arena;
    const int i = static_cast<int>(slot);
    bytes = round_up<size_t>(bytes + 64, 4096);
    if (arena.size[i] < bytes) {
        std::free(arena.block[i]);
        arena.block[i] = std::aligned_alloc(64, bytes);
        if (!arena.block[i]) std::abort();  // as a failed new would end it: nothing above could go on
        arena.size[i] = bytes;
    }
    return arena.block[i];
}

}  // namespace sb
