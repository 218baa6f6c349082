// parallel_for: how every CPU kernel shares out its work.
#pragma once

#include <atomic>
#include <cstdint>

#include "../geometry.h"
#include "../threads.h"
#if defined(__SANITIZE_THREAD__)
#include <sched.h>
#endif

namespace fastops {
namespace cpu {
namespace {

// Calls f(task, slot) for each task in [0, tasks), on up to `threads` threads. `slot` < threads tells
// the threads apart, for per-thread scratch. `work` estimates the elementary steps (loads, multiply-
// adds) of one task.
//
// Tasks are handed out by a counter, in chunks of about an eighth of a thread's share, so that a core
// that others slow down does less. Which thread runs a task must not matter: a task writes its own
// outputs only, and partial sums belong to tasks, never to threads. That makes results independent of
// the number of threads.
template <typename F>
void parallel_for(int threads, int64_t tasks, int64_t work, F f) {
  if (tasks <= 0) return;
  const int64_t useful = imin(imin(threads, tasks), 1 + tasks * imax(work, 1) / min_work_per_thread());
  if (useful <= 1) {
    for (int64_t task = 0; task < tasks; ++task) f(task, 0);
    return;
  }
  struct Region {
    F& f;
    int64_t tasks;
    int64_t chunk;
    std::atomic<int64_t> next;
    std::atomic<int> slots;
  } region{f, tasks, imax(1, tasks / (useful * 8)), {0}, {0}};
  run_on_threads(
      static_cast<int>(useful),
      [](void* context) {
        Region& r = *static_cast<Region*>(context);
        const int slot = r.slots.fetch_add(1);
        while (true) {
#if defined(__SANITIZE_THREAD__)
          sched_yield();  // or of few tasks one thread would do all, and the race detector see no other
#endif
          const int64_t begin = r.next.fetch_add(r.chunk);
          if (begin >= r.tasks) return;
          const int64_t end = imin(begin + r.chunk, r.tasks);
          for (int64_t task = begin; task < end; ++task) r.f(task, slot);
        }
      },
      &region);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
