// parallel(): run tasks on the threads of the process. The pool is torch's own OpenMP runtime, handed over as function
// pointers when the library is loaded: a second pool would spin against the first. Without one, tasks run one by one.
//
// Each worker begins with a share of neighbouring tasks, in order, and helps the others when it has none left: a thread
// that comes late, or that the system takes away, costs its own time and no more.
// Which worker runs which task varies from run to run, so a task may write only what is its own, or add integers to
// its worker's own accumulator: then no result depends on the number of threads.
#pragma once

#include <atomic>
#include <type_traits>

#include "subbyte.h"

namespace sb {

using TaskFn = void (*)(const void* body, i64 task, int worker);

struct Stage {
    i64 tasks;
    TaskFn fn;
    const void* body;
};

// The tasks of each stage begin when all of the one before are done. Waking the threads, tens of microseconds where
// they sleep, is paid once.
void parallel_stages(int threads, const Stage* stages, int count);

// body(task, worker) for task = 0 .. tasks - 1 as a stage; body has to outlive it.
template <class Body>
Stage stage(i64 tasks, const Body& body) {
    return {tasks, [](const void* b, i64 task, int worker) { (*static_cast<const Body*>(b))(task, worker); }, &body};
}

// body(task, worker) for task = 0 .. tasks - 1, with worker in 0 .. threads - 1.
template <class Body>
void parallel(int threads, i64 tasks, const Body& body) {
    const Stage only = stage(tasks, body);
    parallel_stages(threads, &only, 1);
}

// How many threads are worth waking for `work` units, when one is not worth it below `grain` of them.
inline int useful_threads(int threads, i64 work, i64 grain) {
    const i64 most = work / grain;
    return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

}  // namespace sb
