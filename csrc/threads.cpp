// See threads.h.
#include "threads.h"

#include <atomic>
#include <thread>
#include <vector>

namespace fastops {
namespace {

// The ABI of `#pragma omp parallel num_threads(n)`: (outlined function, its data, n, flags).
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

std::atomic<GompParallel> gomp_parallel{nullptr};

}  // namespace

void set_openmp_runtime(uintptr_t address) { gomp_parallel.store(reinterpret_cast<GompParallel>(address)); }

void run_on_threads(int threads, void (*body)(void*), void* context) {
  if (threads <= 1) {
    body(context);
  } else if (GompParallel parallel = gomp_parallel.load()) {
    parallel(body, context, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(static_cast<size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) others.emplace_back(body, context);
    body(context);
    for (std::thread& t : others) t.join();
  }
}

}  // namespace fastops
