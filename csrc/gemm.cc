// sb_gemm: C = A B on codes, batched, any strides.    A (M, K), B (K, N), C (M, N) row-major
//
// B is packed once, in panels of NR columns; a worker packs a block of MC rows of A that stays in its core's second
// cache, and takes the panels in sets (NC) that stay there too. The reduction is not blocked: a panel streams.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "gemm_call.h"
#include "gemm_plan.h"
#include "memory.h"
#include "pack.h"
#include "parallel.h"

namespace sb {
namespace {

ProductOps product_ops{"gemm", "gemm_few_bits"};
Op<PackKernels> unpack_op{"unpack_codes"};

constexpr i64 kLeftBytes = 256 << 10;   // a quarter of the second cache for A's block
constexpr i64 kRightBytes = 256 << 10;  // and one for a set of B's panels
constexpr i64 kFirstCache = 16 << 10;   // half of the first cache: a B that is smaller stays there
constexpr i64 kUnitBytes = 4 << 10;     // of A beside it: what is packed, where it comes from, and what is fetched next
constexpr i64 kUnits = 64;              // of a task then
constexpr i64 kTasks = 8;               // of each thread, where there are so many: it is the last that others wait for
constexpr i64 kPackPanels = 8;          // panels that are packed side by side: whole lines of B
constexpr i64 kUnpackedWords = 16;      // of the columns of a packed B that are unpacked at a time, in the first cache
constexpr i64 kFarBytes = 4 << 20;      // of an output that the caches do not keep: it goes past them, or its lines are
                                        // fetched while the sums that go there are made
constexpr i64 kFreshBytes = 32 << 20;   // of an output that malloc maps anew each time, whose pages are yet to come
constexpr i64 kGrain = 1 << 18;         // multiply-accumulates below which a second thread costs more than it saves
constexpr i64 kGroup = 8;   // codes that are packed together
constexpr i64 kOrigin = 0;  // a matrix is one segment, at no offset

struct Offsets {
    i64 a, b, a_scale, b_scale;
};

Offsets offsets(const GemmCall& call, i64 batch) {
    i64 at[4] = {};
    for (i64 d = call.leading; d-- > 0;) {
        for (int i = 0; i < 4; ++i) at[i] += batch % call.size[d] * call.step[d][i];
        batch /= call.size[d];
    }
    return {at[0], at[1], at[2], at[3]};
}

// n things in `parts` parts that differ by one at most: where part i begins.
i64 begin_of(i64 i, i64 n, i64 parts) { return n * i / parts; }

class Gemm {
public:
    Gemm(const GemmCall& call, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), plan_(kernels, call.k, shifts(call), call.a.format(), call.b.format(), call.wide),
          correct_(kernels, plan_), chunks_(plan_.chunks(1)), at_once_(in_one_run(chunks_, call.wide, correct_)),
          words_(plan_.words()), nr_(2 * kernels.lanes), columns_(round_up<i64>(call.n, kernels.lanes)),
          panels_(ceil_div<i64>(call.n, nr_)), batches_(1), mr_(kernels.rows[columns_ > kernels.lanes]) {
        for (i64 d = 0; d < call.leading; ++d) batches_ *= call.size[d];
        threads_ = useful_threads(threads, batches_ * call.m * call.n * std::max<i64>(call.k, 1), kGrain);
    }

    void run() {
        if (batches_ == 0 || call_.m == 0 || call_.n == 0) return;
        packed_b_ = scratch<i32>(Slot::right, batches_ * columns_ * words_);
        init_ = scratch<i32>(Slot::init, batches_ * init_size());
        scale_ = scratch<float>(Slot::scale, call_.is_float ? 2 * batches_ * columns_ : 0);
        const i64 bytes = element() * batches_ * call_.m * call_.n;
        if (bytes >= kFreshBytes) will_fill(reinterpret_cast<void*>(call_.out), bytes);
        divide();
        const bool far = bytes >= kFarBytes && !in_first_cache_;
        stream_ = far && k_.streams() && at_once_ && !call_.half && call_.n % k_.lanes == 0 && call_.out % kLine == 0;
        fetch_output_ = far && !stream_;
        const i64 side = std::clamp<i64>(batches_ * panels_ / threads_, 1, kPackPanels);
        const i64 sides = ceil_div(panels_, side);
        const auto pack = [&](i64 task, int) {
            const i64 first = task % sides * side;
            pack_b(task / sides, first, std::min(first + side, panels_));
        };
        const auto product = [&](i64 task, int worker) {
            const i64 split = task % splits_, block = task / splits_ % blocks_, batch = task / splits_ / blocks_;
            const i64 p0 = begin_of(split, panels_, splits_), p1 = begin_of(split + 1, panels_, splits_);
            for (i64 unit = block * units_; unit < (block + 1) * units_; ++unit)
                multiply(left_[worker], batch, unit, p0, p1, soon(unit, block, p1));
            if (stream_) finish_streams();
        };
        const Stage stages[] = {stage(batches_ * sides, pack), stage(batches_ * blocks_ * splits_, product)};
        parallel_stages(threads_, stages, 2);
    }

private:
    // A unit of rows as its worker has packed it; it keeps the last one.
    struct alignas(kLine) Left {
        i64 batch = -1, unit = -1;
        const u8* words = nullptr;
        i64 row = 0, step = 0;  // from word to word, in bytes
        std::vector<i32> sums;  // for each tile and chunk, kMaxRows: what corrects its rows
    };

    static std::vector<int> shifts(const GemmCall& c) {
        return left_shifts(c.k, c.a.exponents(), static_cast<int>(c.a.max_shift), c.b.exponents(),
                           static_cast<int>(c.b.max_shift));
    }
    bool wide() const { return plan_.wide() && !call_.is_float; }  // the output, not only the sums
    i64 element() const { return wide() ? 8 : call_.half ? 2 : 4; }
    i64 init_size() const { return static_cast<i64>(chunks_.size()) * columns_; }
    bool left_by_columns() const { return call_.a.outer == 1 && call_.a.inner != 1; }
    i64 width(i64 panel) const { return std::min(nr_, columns_ - panel * nr_); }
    i32* panel_b(i64 batch, i64 panel) const { return packed_b_ + (batch * columns_ + panel * nr_) * words_; }
    float* col_scale(i64 batch) const { return scale_ + 2 * batch * columns_; }

    // Rows in blocks, equally many for each thread, of units that fit a cache; columns in sets of panels that do. A
    // task is a block times a set; a worker's tasks follow each other, so that it packs a unit once.
    void divide() {
        const i64 row_bytes = std::max<i64>(4 * words_, 1), panel_bytes = nr_ * row_bytes;
        in_first_cache_ = columns_ * row_bytes <= kFirstCache;
        // Of a transposed A, a unit takes parts of lines: where it is narrow, one twice as wide reads far fewer twice.
        const bool narrow = left_by_columns() && kLeftBytes / row_bytes < 2 * kLine;
        const i64 unit_bytes = in_first_cache_ ? kUnitBytes : narrow ? 2 * kLeftBytes : kLeftBytes;
        const i64 fit = std::max(mr_, unit_bytes / row_bytes / mr_ * mr_);
        const i64 share = std::max(mr_, ceil_div<i64>(call_.m * batches_, threads_));
        const i64 most = std::min(in_first_cache_ ? fit * kUnits : fit, share);
        blocks_ = ceil_div(call_.m, most);
        const i64 even = round_up<i64>(blocks_, threads_);
        if (batches_ == 1 && even * mr_ <= call_.m) blocks_ = even;
        units_ = ceil_div(ceil_div(call_.m, blocks_), fit);
        const i64 sets = ceil_div(panels_, std::max<i64>(1, kRightBytes / panel_bytes));
        const i64 wanted = threads_ > 1 ? ceil_div(kTasks * threads_, batches_ * blocks_) : 1;
        splits_ = std::min(panels_, std::max(sets, wanted));
        left_.resize(static_cast<size_t>(threads_));
    }

    void pack_b(i64 batch, i64 p0, i64 p1) {
        const Offsets at = offsets(call_, batch);
        const i64 full = std::min(p1, columns_ / nr_);  // the last panel may be narrower
        const auto encode = [&](i64 from, i64 to) {
            const i64 n = std::min(to * nr_, call_.n) - from * nr_, ld = width(from);
            const Panels panels{panel_b(batch, from), ld, ld, ld * words_};
            if (call_.b_packed) return encode_packed(at.b + from * nr_ * call_.b.outer, n, panels);
            const u8* data = reinterpret_cast<const u8*>(call_.b.data) + at.b + from * nr_ * call_.b.outer;
            k_.encode_columns(plan_.right_codes(data, call_.b.outer, call_.b.inner), n, words_, panels);
        };
        if (p0 < full) encode(p0, full);
        if (full < p1) encode(full, p1);
        for (i64 p = p0; p < p1; ++p) finish_b(batch, p, at);
    }

    // Columns of a packed B, the first of which begins at code `at`: unpacked as they are needed, never as a whole.
    void encode_packed(i64 at, i64 n, Panels to) const {
        const i64 bits = call_.b.bits, across = call_.b.outer, down = call_.b.inner;
        const u8* packed = reinterpret_cast<const u8*>(call_.b.data);
        // A row may begin inside a group of 8, which is unpacked as a whole: kGroup bytes before the row are spare.
        const auto unpack = [&](i64 first, i64 count, u8* row) {
            const i64 before = first % kGroup;
            unpack_run(*unpack_, packed + first / kGroup * bits, before + count, static_cast<int>(bits),
                       call_.b.is_signed != 0, row - before);
        };
        if (across == 1) {  // rows of the matrix, some positions of the reduction at a time
            const i64 ld = round_up<i64>(n + kGroup, kLine), per_word = k_.per_word;
            u8* const rows = scratch<u8>(Slot::extra, kUnpackedWords * per_word * ld) + kGroup;
            const Codes all = plan_.right_codes(rows, 1, ld);
            for (i64 w = 0; w < words_; w += kUnpackedWords, to.data += kUnpackedWords * to.ld) {
                const i64 words = std::min(kUnpackedWords, words_ - w);
                for (i64 i = 0; i < words * per_word; ++i) {
                    const i64 position = w * per_word + i;
                    const i64 k = all.order ? all.order[position] : position < call_.k ? position : -1;
                    if (k < 0)
                        std::memset(rows + i * ld, 0, static_cast<size_t>(n));
                    else
                        unpack(at + k * down, n, rows + i * ld);
                }
                Codes some = all;
                some.order = nullptr;
                some.last = words * per_word;
                if (all.factor) some.factor += w * per_word;
                k_.encode_columns(some, n, words, to);
            }
            return;
        }
        const i64 ld = round_up<i64>(call_.k + kGroup, kLine);  // columns of the matrix, a vector of them at a time
        u8* const columns = scratch<u8>(Slot::extra, k_.lanes * ld) + kGroup;
        for (i64 j = 0; j < n; j += k_.lanes) {
            const i64 some = std::min<i64>(k_.lanes, n - j);
            for (i64 i = 0; i < some; ++i) unpack(at + (j + i) * across, call_.k, columns + i * ld);
            k_.encode_columns(plan_.right_codes(columns, ld, 1), some, words_, {to.first_word(j), to.ld});
        }
    }

    // What goes with a panel: the sums that correct it, and the scales and biases of its columns.
    void finish_b(i64 batch, i64 panel, const Offsets& at) {
        const i64 n0 = panel * nr_, n = std::min(nr_, call_.n - n0), ld = width(panel);
        Tile t{};
        t.b = panel_b(batch, panel);
        t.b_step = ld;
        t.a_off = t.b_off = &kOrigin;
        t.segments = 1;
        for (size_t ch = 0; ch < chunks_.size(); ++ch)
            correct_.columns(chunk_tile(t, chunks_[ch]), ld,
                             init_ + batch * init_size() + static_cast<i64>(ch) * columns_ + n0);
        if (!call_.is_float) return;
        const float* scale = reinterpret_cast<const float*>(call_.b_scale) + at.b_scale;
        const float* bias = reinterpret_cast<const float*>(call_.bias);
        float *scales = col_scale(batch) + n0, *biases = scales + columns_;
        for (i64 j = 0; j < ld; ++j) {
            scales[j] = j < n ? scale[(n0 + j) * call_.b_scale_step] : 0.0f;
            biases[j] = j < n && bias ? bias[n0 + j] : 0.0f;
        }
    }

    // Whole tiles, but for the last one of all: they are what keeps the multipliers busy.
    i64 first_row(i64 unit) const {
        return std::min(call_.m, mr_ * begin_of(unit, ceil_div(call_.m, mr_), blocks_ * units_));
    }

    // Words lie as cheaply as A's layout allows; the tile does not care.
    void pack_a(Left& left, const Codes& codes, i64 rows) {
        const bool by_columns = left_by_columns();
        // A row is kept off the period of a cache set.
        const i64 ld = by_columns ? round_up<i64>(rows, k_.lanes) : words_ % 64 < 16 ? words_ + 16 : words_;
        i32* packed = scratch<i32>(Slot::left, by_columns ? ld * words_ : ld * rows);
        if (by_columns)
            k_.encode_columns(codes, rows, words_, {packed, ld});
        else
            k_.encode_rows(codes, rows, words_, packed, ld);
        left.words = reinterpret_cast<const u8*>(packed);
        left.row = by_columns ? 4 : 4 * ld;
        left.step = by_columns ? 4 * ld : 4;
        if (!correct_.has_rows()) return;
        const i64 tiles = ceil_div(rows, mr_), chunks = static_cast<i64>(chunks_.size());
        left.sums.resize(static_cast<size_t>(tiles * chunks * kMaxRows));
        for (i64 tile = 0; tile < tiles; ++tile) {
            const i64 i = tile * mr_, count = std::min(mr_, rows - i);
            for (i64 ch = 0; ch < chunks; ++ch)
                correct_.rows(chunk_tile(left_tile(left, i), chunks_[ch]), static_cast<int>(count),
                              &left.sums[(tile * chunks + ch) * kMaxRows]);
        }
    }

    Tile left_tile(const Left& left, i64 row) const {
        Tile t{};
        t.a = left.words + row * left.row;
        t.a_row = left.row;
        t.a_group = 4 * left.row;
        t.a_step = left.step;
        t.a_off = t.b_off = &kOrigin;
        t.segments = 1;
        t.steps = words_;
        t.exact = plan_.exact();
        return t;
    }

    // Where the units end that this worker is likely to pack next, wanted while the last of B's sets is used.
    i64 soon(i64 unit, i64 block, i64 p1) const {
        const i64 end = in_first_cache_ ? (block + 1) * units_ : p1 == panels_ ? blocks_ * units_ : unit + 1;
        return std::min(unit + 2, end);
    }

    // A unit of rows times panels [p0, p1). Units before `soon` are next, and wanted in the cache by then.
    void multiply(Left& left, i64 batch, i64 unit, i64 p0, i64 p1, i64 soon) {
        const Offsets at = offsets(call_, batch);
        const i64 m0 = first_row(unit), m = first_row(unit + 1) - m0, end = first_row(soon) - m0;
        const u8* data = reinterpret_cast<const u8*>(call_.a.data) + at.a + m0 * call_.a.outer;
        const bool fresh = left.batch != batch || left.unit != unit;
        if (fresh) pack_a(left, plan_.left_codes(data, call_.a.outer, call_.a.inner), m);
        left.batch = batch;
        left.unit = unit;
        const float* scale = reinterpret_cast<const float*>(call_.a_scale) + at.a_scale;
        float row_scale[kMaxRows];
        const i64 tiles = ceil_div(m, mr_), tile_sums = static_cast<i64>(chunks_.size()) * kMaxRows;
        for (i64 tile = 0; tile < tiles; ++tile) {
            const i64 i = tile * mr_, rows = std::min(mr_, m - i);
            const i64 next = std::min(i + m, end), more = std::min(rows, end - next);
            if (in_first_cache_) fetch_output(batch, m0 + next, more), fetch_left(data, next, next + more);
            for (i64 r = 0; call_.is_float && r < rows; ++r) row_scale[r] = scale[(m0 + i + r) * call_.a_scale_step];
            Tile t = left_tile(left, i);
            const i32* sums = correct_.has_rows() ? &left.sums[tile * tile_sums] : nullptr;
            for (i64 panel = p0; panel < p1; ++panel) {
                const i64 j = panel - p0, n = p1 - p0;
                if (!in_first_cache_) fetch_left(data, next + begin_of(j, more, n), next + begin_of(j + 1, more, n));
                one_tile(batch, t, m0 + i, static_cast<int>(rows), panel, row_scale, sums);
            }
        }
    }

    // Rows of C.
    void fetch_output(i64 batch, i64 m, i64 rows) const {
        const i64 row = element() * call_.n;
        const u8* out = reinterpret_cast<const u8*>(call_.out) + (batch * call_.m + m) * row;
        for (i64 byte = 0; byte < rows * row; byte += kLine) __builtin_prefetch(out + byte, 1);
    }

    // Rows [i0, i1) of A after the one at `data`.
    void fetch_left(const u8* data, i64 i0, i64 i1) const {
        for (i64 i = i0; call_.a.inner == 1 && i < i1; ++i)
            for (i64 byte = 0; byte < call_.k; byte += kLine) __builtin_prefetch(data + i * call_.a.outer + byte);
    }

    void one_tile(i64 batch, Tile& t, i64 m, int rows, i64 panel, const float* row_scale, const i32* row_sums) {
        t.b = panel_b(batch, panel);
        t.b_step = width(panel);
        const i64 n0 = panel * nr_, n = std::min(nr_, call_.n - n0), first = (batch * call_.m + m) * call_.n + n0;
        const int vectors = static_cast<int>(width(panel) / k_.lanes);
        const float* cols = call_.is_float ? col_scale(batch) + n0 : nullptr;
        const Epilogue epilogue{row_scale, cols, call_.bias ? cols + columns_ : nullptr, nullptr, n, call_.half != 0};
        const i32* init = init_ + batch * init_size() + n0;
        u8* const out = reinterpret_cast<u8*>(call_.out) + element() * first;
        // int32 sums of whole vectors, and floats that need no second step, go where they belong at once: without a
        // copy of the tile, since a store that is read in other pieces has to wait.
        const bool in_place = call_.is_float ? at_once_ : !wide() && n == width(panel);
        t.c_row = in_place ? call_.n : nr_;
        t.c_group = 4 * t.c_row;
        for (i64 i = 0; fetch_output_ && i < rows; ++i)
            for (i64 byte = 0; byte < element() * n; byte += kLine)
                __builtin_prefetch(out + i * element() * call_.n + byte, 1);
        if (in_place && at_once_) {
            t.epilogue = call_.is_float ? &epilogue : nullptr;
            t.stream = stream_;
            t.init = init;
            t.c = reinterpret_cast<i32*>(out);
            k_.tile[vectors - 1][rows - 1](t);
            return;
        }
        alignas(64) u8 buffer[8 * kMaxRows * kMaxVectors * kMaxLanes];
        u8* const acc = in_place ? out : buffer;
        run_chunks(k_, chunks_, plan_.wide(), t, rows, vectors, acc, init, columns_, row_sums);
        if (call_.is_float)
            k_.finish({acc, plan_.wide(), nr_, rows, epilogue, out, call_.n, 1});
        else
            for (int i = 0; !in_place && i < rows; ++i)
                std::memcpy(out + element() * i * call_.n, acc + element() * i * nr_,
                            static_cast<size_t>(element() * n));
    }

    const GemmCall& call_;
    const ProductKernels& k_;
    Reduction plan_;
    Correction correct_;
    std::vector<Chunk> chunks_;
    bool at_once_, in_first_cache_ = false, stream_ = false, fetch_output_ = false;
    const PackKernels* unpack_ = unpack_op.best().table;
    i64 words_, nr_, columns_, panels_, batches_, mr_;
    i64 blocks_ = 1, units_ = 1, splits_ = 1;  // of the rows; in a block; of the panels
    int threads_;
    std::vector<Left> left_;
    i32 *packed_b_ = nullptr, *init_ = nullptr;
    float* scale_ = nullptr;
};

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_gemm(const void* call, int threads) {
    const auto& given = *static_cast<const sb::GemmCall*>(call);
    const auto kernel = sb::best_products(sb::product_ops, given.a.format(), given.b.format(),
                                          given.a.max_shift + given.b.max_shift);
    sb::Gemm(given, *kernel.table, threads).run();
    return kernel.name;
}
