// A processor of the emulated GPU: runs the blocks of a grid one at a time, each block's threads as
// fibers.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace simt {

constexpr unsigned kMaxThreads = 1024;
// Shared memory of a block: the most that any GPU has, and what one may use without asking.
constexpr size_t kSharedMax = size_t{227} << 10, kSharedUnasked = size_t{48} << 10;
// Where it is: there is room between arrays.
constexpr size_t kArena = size_t{512} << 10;

std::string text(const Site& site);
std::string text(const uint3& position);

// A launch in progress.
struct Grid {
  const cudaLaunchConfig_t& config;
  void (*entry)(void*);
  void* arguments;
  uint64_t blocks;
  size_t shared_most;  // static and dynamic
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::string error;  // the first one

  Grid(const cudaLaunchConfig_t& c, void (*e)(void*), void* a, uint64_t b, size_t most)
      : config(c), entry(e), arguments(a), blocks(b), shared_most(most) {}
  void fail(const std::string& message) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (error.empty()) error = message;
    failed = true;
  }
};

struct Copy {
  void* to;
  const void* from;
  unsigned group;
  bool done;
  uint32_t ticket;  // the race detector's
};

enum class State { kNew, kReady, kBarrier, kCollective, kMbarrier, kReturned };

struct EmulatedThread : Thread {
  State state;
  Fiber* fiber;
  // While it waits: for what and where, and in a collective with which lanes and what it brought.
  const char* waits_for;
  Site site;
  uint32_t mask;
  void* brought;
  unsigned count;  // the barrier's answer
  std::vector<Copy> copies;
  unsigned groups;  // committed
};

struct SharedArray {
  const void* declaration;
  size_t offset, bytes;
};

struct Async;  // async.cpp: copies, products and barriers of sm_90a

// Runs blocks, one at a time; each worker has one.
class Processor {
 public:
  Processor();
  void work(Grid& grid);

  unsigned barrier(bool predicate, Site site);
  void collective(uint32_t mask, const char* name, void* brought, void (*combine)(void* const*),
                  bool orders_memory, Site site);
  void* shared_array(const void* declaration, size_t bytes, size_t alignment, Site site);
  bool is_shared(const void* p, size_t bytes) const;
  void* dynamic_shared_array(Site site) {
    return shared_array(this, grid_->config.dynamicSmemBytes, 1024, site);
  }
  void copy_async(void* to, const void* from, Site site, const void* code);
  void commit_copies() { ++self().groups; }
  void wait_for_copies(unsigned groups_left);
  Async& async();
  const char* arena() const { return arena_; }
  unsigned size() const { return size_; }
  [[noreturn]] void fail(const std::string& message);

 private:
  friend struct Async;
  friend void mbarrier_wait(void* barrier, uint32_t parity, Site site);
  static EmulatedThread& self() { return *static_cast<EmulatedThread*>(current); }
  void run_block(uint64_t index);
  void begin_block(uint64_t index);
  void end_block();
  static void fiber_main();
  Fiber* free_fiber();
  EmulatedThread* next_ready();
  void make_ready(EmulatedThread& t);
  void wait(State state, const char* name, Site site);
  void returned();
  std::string where_threads_are() const;
  static void perform(Copy& copy);
  void begin_async();
  // When no thread can go on: makes a copy of a tensor that is under way, if there is one.
  bool late_copy();
  std::string why_ends_badly() const;  // empty: it does not

  Grid* grid_ = nullptr;
  unsigned size_ = 0, live_ = 0;
  std::unique_ptr<EmulatedThread[]> threads_{new EmulatedThread[kMaxThreads]()};
  // Ready threads as bits, in the order in which they are to run: thread of_rank_[r] has bit r.
  uint64_t ready_[kMaxThreads / 64] = {};
  uint16_t rank_[kMaxThreads], of_rank_[kMaxThreads];
  Fiber main_;
  char* stacks_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  char* arena_;
  std::vector<SharedArray> arrays_;
  size_t arena_top_ = kArena, arena_used_ = 0;  // with and without what is between arrays
  // The barrier that threads wait at.
  unsigned arrived_ = 0, predicates_ = 0;
  Site barrier_site_ = {};
  std::mt19937_64 random_;
  std::shared_ptr<Async> async_;  // from its first use on
};

// The processor that this thread of the operating system is.
extern __thread Processor* processor;

}  // namespace simt
