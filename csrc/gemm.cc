// sb_gemm: C = A B on codes, batched, any strides.    A (M, K), B (K, N), C (M, N) row-major
//
// B is packed once, in panels of NR columns; each task packs a block of MC rows of A that stays in its core's second
// cache, and takes the panels in sets (NC) that stay there too. The reduction is not blocked: a panel streams.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "gemm_plan.h"
#include "parallel.h"

namespace sb {
namespace {

Op<ProductKernels> op{"gemm"};

constexpr i64 kBlockBytes = 256 << 10;  // a quarter of the second cache for A's block, and one for B's panels
constexpr i64 kFirstCache = 16 << 10;   // half of the first cache
constexpr i64 kLine = 64;               // bytes that memory moves at a time
constexpr i64 kBlocksAhead = 16;        // small blocks of a task, so that all but its first are fetched in time
constexpr i64 kGrain = 1 << 18;         // multiply-accumulates below which a second thread costs more than it saves
constexpr int kMaxLeading = 8;
constexpr i64 kOrigin = 0;  // a matrix is one segment, at no offset

// All 64-bit, so that Python fills it as one array; pointers are addresses, 0 for none. See _cpu_products.py.
struct GemmCall {
    struct Operand {
        i64 data, outer, inner, shift, bits, is_signed, max_shift;
        Format format() const { return {bits, is_signed}; }
        const u8* exponents() const { return reinterpret_cast<const u8*>(shift); }
    } a, b;
    i64 m, n, k, wide;
    i64 out, is_float;  // int32, or int64 when wide, unless float
    i64 a_scale, a_scale_step, b_scale, b_scale_step, bias;
    i64 leading, size[kMaxLeading], step[kMaxLeading][4];  // of a, b, a_scale, b_scale in elements
};

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

class Gemm {
public:
    Gemm(const GemmCall& call, const ProductKernels& kernels, int threads)
        : call_(call), k_(kernels), plan_(kernels, call.k, shifts(call), call.a.format(), call.b.format(), call.wide),
          correct_(kernels, plan_), chunks_(plan_.chunks(1)), words_(plan_.words()), nr_(2 * kernels.lanes),
          columns_(round_up<i64>(call.n, kernels.lanes)), panels_(ceil_div<i64>(call.n, nr_)), batches_(1),
          mr_(kernels.rows[columns_ > kernels.lanes]) {
        for (i64 d = 0; d < call.leading; ++d) batches_ *= call.size[d];
        threads_ = useful_threads(threads, batches_ * call.m * call.n * std::max<i64>(call.k, 1), kGrain);
    }

    void run() {
        if (batches_ == 0 || call_.m == 0 || call_.n == 0) return;
        packed_b_ = scratch<i32>(Slot::right, batches_ * columns_ * words_);
        init_ = scratch<i32>(Slot::init, batches_ * init_size());
        scale_ = scratch<float>(Slot::scale, call_.is_float ? 2 * batches_ * columns_ : 0);
        parallel(threads_, batches_ * panels_, [&](i64 task, int) { pack_b(task / panels_, task % panels_); });

        // Blocks of rows: they fit the cache, and give every thread some. Few rows: columns are divided as well.
        const i64 want = 2 * threads_;
        // A small B leaves room for A's block in the first cache.
        const i64 row_bytes = std::max<i64>(4 * words_, 1), b_bytes = columns_ * row_bytes;
        const i64 fit = std::max(mr_, (b_bytes <= kFirstCache ? kFirstCache : kBlockBytes) / row_bytes / mr_ * mr_);
        const i64 share = round_up(ceil_div(call_.m * batches_, want), mr_);
        const i64 unit = round_up(balanced(call_.m, std::min(fit, share)), mr_);
        const i64 mc = b_bytes <= kFirstCache ? std::min(kBlocksAhead * unit, share) : unit;
        const i64 blocks = ceil_div(call_.m, mc);
        const i64 splits = std::min(panels_, ceil_div(want, batches_ * blocks));
        parallel(threads_, batches_ * blocks * splits, [&](i64 task, int) {
            const i64 batch = task / (blocks * splits), block = task / splits % blocks, split = task % splits;
            const i64 m0 = block * mc, p0 = panels_ * split / splits, p1 = panels_ * (split + 1) / splits;
            const i64 m1 = std::min(m0 + mc, call_.m);
            for (i64 m = m0; m < m1; m += unit)
                multiply(batch, m, std::min(unit, m1 - m), p0, p1, std::min(m + 2 * unit, m1));
        });
    }

private:
    static std::vector<int> shifts(const GemmCall& c) {
        return left_shifts(c.k, c.a.exponents(), static_cast<int>(c.a.max_shift), c.b.exponents(),
                           static_cast<int>(c.b.max_shift));
    }
    i64 init_size() const { return static_cast<i64>(chunks_.size()) * columns_; }
    i64 width(i64 panel) const { return std::min(nr_, columns_ - panel * nr_); }
    i32* panel_b(i64 batch, i64 panel) const { return packed_b_ + (batch * columns_ + panel * nr_) * words_; }
    float* col_scale(i64 batch) const { return scale_ + 2 * batch * columns_; }

    void pack_b(i64 batch, i64 panel) {
        const Offsets at = offsets(call_, batch);
        const i64 n0 = panel * nr_, n = std::min(nr_, call_.n - n0), ld = width(panel);
        const u8* data = reinterpret_cast<const u8*>(call_.b.data) + at.b + n0 * call_.b.outer;
        k_.encode_columns(plan_.right_codes(data, call_.b.outer, call_.b.inner), n, words_, panel_b(batch, panel), ld);
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

    // Rows [m0, m0 + m) of one matrix times panels [p0, p1); rows up to `soon` are next, and wanted in the cache by then.
    void multiply(i64 batch, i64 m0, i64 m, i64 p0, i64 p1, i64 soon) {
        const Offsets at = offsets(call_, batch);
        const u8* data = reinterpret_cast<const u8*>(call_.a.data) + at.a + m0 * call_.a.outer;
        const Codes codes = plan_.left_codes(data, call_.a.outer, call_.a.inner);
        // Words lie as cheaply as A's layout allows; the tile does not care. A row is kept off the period of a cache
        // set.
        const bool by_columns = call_.a.outer == 1 && call_.a.inner != 1;
        const i64 ld = by_columns ? round_up<i64>(m, k_.lanes) : words_ % 64 < 16 ? words_ + 16 : words_;
        i32* packed = scratch<i32>(Slot::left, by_columns ? ld * words_ : ld * m);
        if (by_columns)
            k_.encode_columns(codes, m, words_, packed, ld);
        else
            k_.encode_rows(codes, m, words_, packed, ld);
        const i64 row = by_columns ? 4 : 4 * ld, step = by_columns ? 4 * ld : 4;

        const i64 most = p1 - p0, set = std::clamp<i64>(kBlockBytes / std::max<i64>(4 * nr_ * words_, 1), 1, most);
        float row_scale[kMaxRows];
        std::vector<i32> row_sums(correct_.has_rows() ? chunks_.size() * kMaxRows : 0);
        const i64 height = balanced(m, mr_);
        for (i64 q0 = p0; q0 < p1; q0 += set)
            for (i64 i = 0; i < m; i += height) {
                const int rows = static_cast<int>(std::min(height, m - i));
                if (q0 == p0 && call_.a.inner == 1)
                    for (i64 r = i + m; r < std::min(i + m + rows, soon - m0); ++r)
                        for (i64 byte = 0; byte < call_.k; byte += kLine)
                            __builtin_prefetch(data + r * call_.a.outer + byte);
                Tile t{};
                t.a = reinterpret_cast<const u8*>(packed) + i * row;
                t.a_row = row;
                t.a_group = 4 * row;
                t.a_step = step;
                t.c_row = nr_;
                t.c_group = 4 * nr_;
                t.a_off = t.b_off = &kOrigin;
                t.segments = 1;
                t.steps = words_;
                for (size_t ch = 0; ch * kMaxRows < row_sums.size(); ++ch)
                    correct_.rows(chunk_tile(t, chunks_[ch]), rows, &row_sums[ch * kMaxRows]);
                const float* scale = reinterpret_cast<const float*>(call_.a_scale) + at.a_scale;
                for (int r = 0; call_.is_float && r < rows; ++r)
                    row_scale[r] = scale[(m0 + i + r) * call_.a_scale_step];
                for (i64 panel = q0; panel < std::min(q0 + set, p1); ++panel)
                    one_tile(batch, t, m0 + i, rows, panel, row_scale, row_sums.empty() ? nullptr : row_sums.data());
            }
    }

    void one_tile(i64 batch, Tile& t, i64 m, int rows, i64 panel, const float* row_scale, const i32* row_sums) {
        t.b = panel_b(batch, panel);
        t.b_step = width(panel);
        const i64 n0 = panel * nr_, n = std::min(nr_, call_.n - n0), first = (batch * call_.m + m) * call_.n + n0;
        alignas(64) i64 buffer[kMaxRows * kMaxVectors * kMaxLanes];
        const int vectors = static_cast<int>(width(panel) / k_.lanes);
        const float* cols = call_.is_float ? col_scale(batch) + n0 : nullptr;
        const Epilogue epilogue{row_scale, cols, call_.bias ? cols + columns_ : nullptr, nullptr, n};
        const i32* init = init_ + batch * init_size() + n0;
        // int32 sums of whole vectors, and floats that need no second step, go where they belong at once.
        const bool at_once = in_one_run(chunks_, plan_.wide(), correct_);
        const bool in_place = call_.is_float ? at_once : !plan_.wide() && n == width(panel);
        void* acc = in_place ? reinterpret_cast<i32*>(call_.out) + first : static_cast<void*>(buffer);
        t.c_row = in_place ? call_.n : nr_;
        t.c_group = 4 * t.c_row;
        if (in_place && at_once) {  // without a copy of the tile: a store that is read in other pieces has to wait
            t.epilogue = call_.is_float ? &epilogue : nullptr;
            t.init = init;
            t.c = static_cast<i32*>(acc);
            k_.tile[vectors - 1][rows - 1](t);
            return;
        }
        run_chunks(k_, chunks_, plan_.wide(), t, rows, vectors, acc, init, columns_, row_sums);
        if (call_.is_float) {
            k_.finish({acc, plan_.wide(), nr_, rows, epilogue, reinterpret_cast<float*>(call_.out) + first, call_.n,
                       1});
        } else if (!in_place) {
            const i64 size = plan_.wide() ? 8 : 4;
            for (int i = 0; i < rows; ++i)
                std::memcpy(reinterpret_cast<u8*>(call_.out) + size * (first + i * call_.n),
                            reinterpret_cast<u8*>(buffer) + size * i * nr_, static_cast<size_t>(size * n));
        }
    }

    const GemmCall& call_;
    const ProductKernels& k_;
    Reduction plan_;
    Correction correct_;
    std::vector<Chunk> chunks_;
    i64 words_, nr_, columns_, panels_, batches_, mr_;
    int threads_;
    i32 *packed_b_ = nullptr, *init_ = nullptr;
    float* scale_ = nullptr;
};

}  // namespace
}  // namespace sb

SB_EXPORT const char* sb_gemm(const void* call, int threads) {
    const auto kernel = sb::op.best();
    sb::Gemm(*static_cast<const sb::GemmCall*>(call), *kernel.table, threads).run();
    return kernel.name;
}
