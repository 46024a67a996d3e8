// sb_amax: the range of a tensor, whole or for each index of one axis.
//
// A dense tensor is (outer, channels, inner) in memory order, whatever its logical order: `channels` is the axis that
// keeps its own ranges and inner its stride. Maxima do not depend on order: each worker has its own, merged at the end.
#include "amax.h"

#include <algorithm>

#include "cpu_features.h"
#include "memory.h"
#include "numerics.h"
#include "parallel.h"

namespace sb {
namespace {

Op<AmaxKernels> op{"amax"};

constexpr i64 kBlock = 1 << 15;   // floats in a task: 128 KiB, many tasks for a tensor that is worth two threads
constexpr i64 kGrain = 1 << 15;   // below this a second thread costs more than it saves
constexpr i64 kShortRun = 16;     // shorter runs are handled as columns
constexpr i64 kMinColumns = 256;  // narrow columns are taken several rows at a time, so that vectors fill

}  // namespace
}  // namespace sb

// data: outer * channels * inner dense floats (half: bfloat16) -> r[channels]
SB_EXPORT const char* sb_amax(
    const void* data, int half, sb::i64 outer, sb::i64 channels, sb::i64 inner, float* r, int threads) {
    using namespace sb;
    const Floats x(data, half);
    const auto kernel = op.best();
    const i64 n = outer * channels * inner;
    const int workers = useful_threads(threads, n, kGrain);
    // Columns pay where runs are short, unless the maxima themselves would fill the cache.
    const bool by_columns = inner < kShortRun && outer > 1;
    const i64 period = channels * inner;
    const i64 repeat = by_columns ? std::min(ceil_div(kMinColumns, period), outer) : 1;
    const i64 slots = by_columns ? period * repeat : channels;
    const i64 stride = round_up<i64>(slots, 16);  // workers do not share a cache line
    Lines<i32> maxima(static_cast<size_t>(stride * workers), 0);

    if (by_columns) {
        const i64 rows = n / slots;  // whole rows of `slots`; what is left over goes last
        const i64 rows_per_task = ceil_div(kBlock, slots);
        parallel(workers, ceil_div(rows, rows_per_task), [&](i64 task, int worker) {
            const i64 begin = task * rows_per_task, end = std::min(begin + rows_per_task, rows);
            kernel.table->columns(x + begin * slots, end - begin, slots, &maxima[worker * stride]);
        });
        kernel.table->columns(x + rows * slots, 1, n - rows * slots, maxima.data());
    } else {
        parallel(workers, ceil_div(n, kBlock), [&](i64 task, int worker) {
            const i64 end = std::min((task + 1) * kBlock, n);
            for (i64 at = task * kBlock; at < end;) {
                const i64 which = at / inner, stop = std::min(end, (which + 1) * inner);
                kernel.table->run(x + at, stop - at, &maxima[worker * stride + which % channels]);
                at = stop;
            }
        });
    }
    for (i64 c = 0; c < channels; ++c) {
        i32 best = 0;
        for (int worker = 0; worker < workers; ++worker)
            if (by_columns) {
                for (i64 k = 0; k < repeat; ++k)
                    for (i64 i = 0; i < inner; ++i)
                        best = std::max(best, maxima[worker * stride + k * period + c * inner + i]);
            } else {
                best = std::max(best, maxima[worker * stride + c]);
            }
        r[c] = range_from_bits(best);
    }
    return kernel.name;
}
