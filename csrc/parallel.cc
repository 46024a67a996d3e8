// The borrowed thread pool. See parallel.h.
#include "parallel.h"

#include <memory>
#include <thread>

namespace sb {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpThreadNum = int (*)();

GompParallel gomp_parallel = nullptr;
OmpThreadNum omp_thread_num = nullptr;

constexpr int kSpins = 1 << 10;  // some microseconds: then whoever is waited for may need this very core

// A worker's tasks of a stage. Others take from it when they have none left.
struct alignas(64) Share {
    std::atomic<i64> next;
    i64 end;
};

struct Region {
    Region(int workers, const Stage* stages, int count)
        : stages(stages), count(count), workers(workers), shares(new Share[static_cast<size_t>(workers * count)]) {
        for (int p = 0; p < count; ++p)
            for (int w = 0; w < workers; ++w) {
                Share& share = shares[p * workers + w];
                share.next.store(stages[p].tasks * w / workers, std::memory_order_relaxed);
                share.end = stages[p].tasks * (w + 1) / workers;
            }
    }

    const Stage* stages;
    int count, workers;
    std::unique_ptr<Share[]> shares;
    std::atomic<i64> done{0};  // tasks of all stages
};

void wait_for(const std::atomic<i64>& done, i64 tasks) {
    for (int spins = 0; done.load(std::memory_order_acquire) < tasks; ++spins) {
        if (spins > kSpins) std::this_thread::yield();
#if SB_X86
        __builtin_ia32_pause();
#endif
    }
}

void work(void* data) {
    Region& r = *static_cast<Region*>(data);
    const int worker = omp_thread_num();
    i64 all = 0;
    for (int p = 0; p < r.count; ++p) {
        const Stage& stage = r.stages[p];
        i64 ran = 0;
        for (int i = 0; i < r.workers; ++i) {
            Share& share = r.shares[p * r.workers + (worker + i) % r.workers];
            for (i64 task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end; ++ran)
                stage.fn(stage.body, task, worker);
        }
        all += stage.tasks;
        r.done.fetch_add(ran, std::memory_order_release);
        if (p + 1 < r.count) wait_for(r.done, all);
    }
}

}  // namespace

void parallel_stages(int threads, const Stage* stages, int count) {
    i64 most = 0;
    for (int p = 0; p < count; ++p) most = stages[p].tasks > most ? stages[p].tasks : most;
    if (threads > most) threads = static_cast<int>(most);
    if (threads <= 1 || !gomp_parallel) {
        for (int p = 0; p < count; ++p)
            for (i64 task = 0; task < stages[p].tasks; ++task) stages[p].fn(stages[p].body, task, 0);
        return;
    }
    Region region(threads, stages, count);
    gomp_parallel(work, &region, static_cast<unsigned>(threads), 0);
}

}  // namespace sb

// Borrow a pool: the addresses of GOMP_parallel and omp_get_thread_num in the runtime that the process already has.
SB_EXPORT void sb_set_parallel(void* gomp_parallel, void* omp_get_thread_num) {
    sb::gomp_parallel = reinterpret_cast<sb::GompParallel>(gomp_parallel);
    sb::omp_thread_num = reinterpret_cast<sb::OmpThreadNum>(omp_get_thread_num);
}
