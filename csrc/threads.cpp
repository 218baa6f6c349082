// See threads.h.
#include "threads.h"

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "geometry.h"

namespace fastops {
namespace {

// The ABI of `#pragma omp parallel num_threads(n)`: (outlined function, its data, n, flags).
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

std::atomic<GompParallel> gomp_parallel{nullptr};

// About 10 µs of work.
std::atomic<int64_t> min_work{16384};

}  // namespace

void set_openmp_runtime(uintptr_t address) { gomp_parallel.store(reinterpret_cast<GompParallel>(address)); }

int64_t min_work_per_thread() { return min_work.load(std::memory_order_relaxed); }

void set_min_work_per_thread(int64_t steps) { min_work.store(imax(steps, 1)); }

void run_on_threads(int threads, void (*body)(void*), void* context) {
  if (threads <= 1) {
    body(context);
  } else if (GompParallel parallel = gomp_parallel.load()) {
    parallel(body, context, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      others.reserve(static_cast<size_t>(threads - 1));
      for (int i = 1; i < threads; ++i) others.emplace_back(body, context);
    } catch (const std::exception&) {
      // The system gives no more threads: those that there are share the tasks.
    }
    body(context);
    for (std::thread& t : others) t.join();
  }
}

}  // namespace fastops
