// The borrowed thread pool. See parallel.h.
#include "parallel.h"

namespace sb {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpThreadNum = int (*)();

GompParallel gomp_parallel = nullptr;
OmpThreadNum omp_thread_num = nullptr;

struct Region {
    std::atomic<i64> next;
    i64 tasks;
    TaskFn fn;
    const void* body;
};

void work(void* data) {
    Region& r = *static_cast<Region*>(data);
    const int worker = omp_thread_num();
    for (i64 task; (task = r.next.fetch_add(1, std::memory_order_relaxed)) < r.tasks;) r.fn(r.body, task, worker);
}

}  // namespace

void parallel_tasks(int threads, i64 tasks, TaskFn fn, const void* body) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads <= 1 || !gomp_parallel) {
        for (i64 task = 0; task < tasks; ++task) fn(body, task, 0);
        return;
    }
    Region region{{0}, tasks, fn, body};
    gomp_parallel(work, &region, static_cast<unsigned>(threads), 0);
}

}  // namespace sb

// Borrow a pool: the addresses of GOMP_parallel and omp_get_thread_num in the runtime that the process already has.
SB_EXPORT void sb_set_parallel(void* gomp_parallel, void* omp_get_thread_num) {
    sb::gomp_parallel = reinterpret_cast<sb::GompParallel>(gomp_parallel);
    sb::omp_thread_num = reinterpret_cast<sb::OmpThreadNum>(omp_get_thread_num);
}
