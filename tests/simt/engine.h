// What emulated kernels ask of the engine. It knows threads, blocks and memory; the CUDA names for
// them are in emulation.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace simt {

// A place in a kernel's source.
struct Site {
  const char* file;
  int line;
};

// A thread as the kernel sees it.
struct Thread {
  uint3 position;
  uint3 block_position;
  dim3 block_size;
  dim3 grid_size;
  unsigned index;  // in its block; index % 32 is the lane, index / 32 the warp
};

// The emulated thread that now runs on this thread of the operating system; null outside of kernels.
extern __thread Thread* current;

// Ends the launch: its error names the block, the thread, the site and the message.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Site site, const char* format, ...);

// Waits for every thread of the block; returns how many of them brought `predicate`.
unsigned barrier(bool predicate, Site site);

// Waits for the lanes in `mask`. The last one to come calls combine() with what each lane brought, null
// for lanes outside of the mask. Only some collectives order memory.
void collective(uint32_t mask, const char* name, void* brought, void (*combine)(void* const* lanes),
                bool orders_memory, Site site);

// The block's array for this declaration (any unique address), or of the launch's dynamic bytes.
void* shared_array(const void* declaration, size_t bytes, size_t alignment, Site site);
void* dynamic_shared_array(Site site);

// Fails if some of these bytes are not in a shared array.
void check_shared(const void* p, size_t bytes, const char* name, Site site);

// If *p equals *expected, stores *desired; otherwise loads it into *expected. 1, 2, 4 or 8 bytes. Atomic, and
// relaxed: it orders other memory only together with fences on both sides.
bool compare_exchange(void* p, void* expected, const void* desired, size_t bytes);
void fence();

// 16 bytes to shared memory, at some time between this call and the wait for its group. from may be
// null: zeros.
void copy_async(void* to, const void* from, Site site);
void commit_copies();
void wait_for_copies(unsigned groups_left);

// Runs a grid, entry(arguments) in each thread; the text of its error is cudaGetErrorString's.
cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*entry)(void*),
                     void* arguments);

// In which order threads go on from a barrier (or begin), and when asynchronous copies happen.
enum class Order { kForward, kReverse, kRandom };
enum class Copies { kLazy, kEager, kRandom };

struct Settings {
  Order order = Order::kForward;
  Copies copies = Copies::kLazy;
  uint64_t seed = 0;
  unsigned workers = 0;  // threads of the operating system that share the blocks; 0: one per core
  // Of a grid of `many_blocks` or more only so many, the last ones, and no memory is filled: to see a few
  // of very many elements. 0: all.
  uint64_t last_blocks = 0;
  uint64_t many_blocks = 1 << 16;
};
extern Settings settings;

}  // namespace simt
