// Running a function on several threads, on the OpenMP runtime that torch has already loaded.
#pragma once

#include <cstdint>

namespace fastops {

// torch's wheels bring an OpenMP runtime under a name of their own. Linking another one would give the
// process two thread pools that spin against each other, so fastops links none: Python finds the
// loaded runtime's GOMP_parallel (libgomp, libiomp5 and libomp all export it) and hands it over here.
// With 0, threads are made anew for each region.
void set_openmp_runtime(uintptr_t gomp_parallel);

// Below this many elementary steps another thread costs more than it brings. Tests set it to 1, so that
// small cases run on several threads too; results do not depend on it.
int64_t min_work_per_thread();
void set_min_work_per_thread(int64_t steps);

// Calls body(context) on up to `threads` threads, this one included, and waits for all of them. There
// may be fewer (inside another parallel region there is one): the bodies must share out the work.
void run_on_threads(int threads, void (*body)(void*), void* context);

}  // namespace fastops
