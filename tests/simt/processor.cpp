// The emulation is exact about what CUDA promises (barriers, collectives), and as hostile as it can be about
// the rest.
#include "processor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>

#include "race.h"

namespace simt {

__thread Processor* processor = nullptr;

std::string text(const Site& site) {
  if (!site.file) return "?";
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

namespace {

constexpr size_t kGuard = 4096;  // an unmapped page below each stack
#if defined(__SANITIZE_ADDRESS__) || defined(SIMT_RACE)
constexpr size_t kStack = size_t{256} << 10;
#else
constexpr size_t kStack = size_t{64} << 10;
#endif
// Between shared arrays; what no kernel writes by accident.
constexpr size_t kRedZone = 128;
constexpr unsigned char kRedByte = 0xFD, kFreshByte = 0xFF;  // 0xFF...: NaN, or -1

#if defined(__SANITIZE_ADDRESS__)
void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
void poison(const void*, size_t) {}
void unpoison(const void*, size_t) {}
#endif

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

uint3 unravel(uint64_t index, const dim3& size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

char* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(p);
}

}  // namespace

Processor::Processor() : stacks_(map_memory(kMaxThreads * (kGuard + kStack))), arena_(map_memory(kArena)) {}

// ---- running ------------------------------------------------------------------------------------

void Processor::work(Grid& grid) {
  processor = this;
  grid_ = &grid;
  race::ignore(stacks_, kMaxThreads * (kGuard + kStack));
  race::ignore(threads_.get(), kMaxThreads * sizeof(EmulatedThread));
  race::ignore(&current, sizeof current);
  for (uint64_t b; !grid.failed && (b = grid.next++) < grid.blocks;) run_block(b);
}

void Processor::run_block(uint64_t index) {
  begin_block(index);
  for (;;) {
    EmulatedThread* t = grid_->failed ? nullptr : next_ready();
    if (!t && !grid_->failed && live_ > 0 && late_copy()) continue;
    if (!t) break;
    if (t->state == State::kNew) t->fiber = free_fiber();
    current = t;
    main_.switch_to(*t->fiber);
    current = nullptr;
  }
  if (live_ > 0 && !grid_->failed)
    grid_->fail("block " + text(threads_[0].block_position) + ": deadlock: " + where_threads_are());
  end_block();
}

void Processor::begin_block(uint64_t index) {
  const cudaLaunchConfig_t& config = grid_->config;
  size_ = live_ = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  random_.seed(settings.seed * 0x9E3779B97F4A7C15u + index);
  for (unsigned r = 0; r < size_; ++r)
    of_rank_[r] = static_cast<uint16_t>(settings.order == Order::kReverse ? size_ - 1 - r : r);
  if (settings.order == Order::kRandom) std::shuffle(of_rank_, of_rank_ + size_, random_);
  for (unsigned r = 0; r < size_; ++r) rank_[of_rank_[r]] = static_cast<uint16_t>(r);

  const uint3 block_position = unravel(index, config.gridDim);
  for (unsigned i = 0; i < size_; ++i) {
    EmulatedThread& t = threads_[i];
    static_cast<Thread&>(t) = {unravel(i, config.blockDim), block_position, config.blockDim, config.gridDim,
                               i};
    make_ready(t);
    t.state = State::kNew;
    t.copies.clear();
    t.groups = 0;
  }
  arrived_ = 0;
  begin_async();
  arrays_.clear();
  unpoison(arena_, kArena);
  std::memset(arena_, kFreshByte, arena_top_);
  poison(arena_, kArena);
  arena_top_ = 0;
  arena_used_ = 0;
  race::begin_block(static_cast<unsigned>(index), size_, arena_, kArena);
}

void Processor::end_block() {
  unpoison(arena_, kArena);
  if (grid_->failed) {  // the threads are left where they stand
    std::memset(ready_, 0, sizeof ready_);
    free_.clear();
    fibers_.clear();
    unpoison(stacks_, kMaxThreads * (kGuard + kStack));
    return;
  }
  if (const std::string why = why_ends_badly(); !why.empty())
    return grid_->fail("block " + text(threads_[0].block_position) + ": " + why);
  for (const SharedArray& a : arrays_)
    for (const size_t zone : {a.offset - kRedZone, a.offset + a.bytes})
      for (size_t i = zone; i < zone + kRedZone; ++i)
        if (static_cast<unsigned char>(arena_[i]) != kRedByte)
          return grid_->fail("block " + text(threads_[0].block_position) +
                             ": a write outside of a shared array of " + std::to_string(a.bytes) + " bytes");
}

// A fiber runs one thread after another. One that has not begun needs no switch.
void Processor::fiber_main() {
  Processor& p = *processor;
  self().fiber->arrived(&p.main_);
  for (;;) {
    p.grid_->entry(p.grid_->arguments);
    p.returned();
    Fiber* fiber = self().fiber;
    EmulatedThread* next = p.next_ready();
    if (next && next->state == State::kNew) {
      next->fiber = fiber;
      current = next;
      continue;
    }
    if (next) p.make_ready(*next);
    p.free_.push_back(fiber);
    fiber->switch_to(p.main_);
  }
}

Fiber* Processor::free_fiber() {
  if (free_.empty()) {
    char* stack = stacks_ + fibers_.size() * (kGuard + kStack);
    mprotect(stack, kGuard, PROT_NONE);
    fibers_.emplace_back(new Fiber(stack + kGuard, kStack, fiber_main));
    free_.push_back(fibers_.back().get());
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

EmulatedThread* Processor::next_ready() {
  for (unsigned word = 0; word * 64 < size_; ++word)
    if (ready_[word]) {
      const unsigned bit = static_cast<unsigned>(__builtin_ctzll(ready_[word]));
      ready_[word] &= ready_[word] - 1;
      return &threads_[of_rank_[word * 64 + bit]];
    }
  return nullptr;
}

void Processor::make_ready(EmulatedThread& t) {
  if (t.state != State::kNew) t.state = State::kReady;
  ready_[rank_[t.index] / 64] |= uint64_t{1} << (rank_[t.index] % 64);
}

void Processor::wait(State state, const char* name, Site site) {
  EmulatedThread& t = self();
  t.state = state;
  t.waits_for = name;
  t.site = site;
  t.fiber->switch_to(main_);
}

void Processor::returned() {
  EmulatedThread& t = self();
  t.state = State::kReturned;
  --live_;
  if (arrived_ > 0) fail("returns, while other threads wait at __syncthreads, " + text(barrier_site_));
  for (unsigned i = t.index & ~31u; i < std::min(size_, (t.index | 31u) + 1); ++i) {
    const EmulatedThread& o = threads_[i];
    if (o.state == State::kCollective && (o.mask >> (t.index % 32) & 1))
      fail(std::string("returns, while other lanes wait for it in ") + o.waits_for + ", " + text(o.site));
  }
}

void Processor::fail(const std::string& message) {
  grid_->fail("block " + text(current->block_position) + ", thread " + text(current->position) + ": " +
              message);
  self().fiber->switch_to(main_);
  __builtin_unreachable();
}

std::string Processor::where_threads_are() const {
  std::map<std::string, int> places;
  for (unsigned i = 0; i < size_; ++i) {
    const EmulatedThread& t = threads_[i];
    ++places[t.state == State::kReturned ? "have returned"
                                         : std::string("wait at ") + t.waits_for + ", " + text(t.site)];
  }
  std::string all;
  for (const auto& [place, count] : places)
    all += (all.empty() ? "" : "; ") + std::to_string(count) + " threads " + place;
  return all;
}

// ---- barriers and collectives -------------------------------------------------------------------

unsigned Processor::barrier(bool predicate, Site site) {
  EmulatedThread& t = self();
  if (live_ < size_)
    fail("waits at __syncthreads, " + text(site) + ", but " + std::to_string(size_ - live_) +
         " threads of the block have returned");
  if (arrived_ == 0) {
    barrier_site_ = site;
    predicates_ = 0;
  } else if (!same(site, barrier_site_)) {
    fail("divergent __syncthreads: here " + text(site) + ", other threads " + text(barrier_site_));
  }
  predicates_ += predicate;
  if (++arrived_ < size_) {
    wait(State::kBarrier, "__syncthreads", site);
    return t.count;
  }
  arrived_ = 0;
  unsigned everyone[kMaxThreads];
  for (unsigned i = 0; i < size_; ++i) {
    everyone[i] = i;
    threads_[i].count = predicates_;
    if (i != t.index) make_ready(threads_[i]);
  }
  race::join(everyone, size_);
  return t.count;
}

void Processor::collective(uint32_t mask, const char* name, void* brought, void (*combine)(void* const*),
                           bool orders_memory, Site site) {
  EmulatedThread& t = self();
  const unsigned first = t.index & ~31u;  // of the warp
  t.mask = mask;
  t.brought = brought;
  const auto here = [&] { return std::string(name) + ", " + text(site) + ": "; };
  if (!(mask >> (t.index % 32) & 1)) fail(here() + "its lane is not in the mask");
  void* lanes[32] = {};
  unsigned members[32];
  size_t count = 0;
  bool complete = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (first + lane >= size_) fail(here() + "lane " + std::to_string(lane) + " of the mask does not exist");
    const EmulatedThread& o = threads_[first + lane];
    if (o.state == State::kReturned) fail(here() + "lane " + std::to_string(lane) + " has returned");
    const bool waits = &o != &t && o.state == State::kCollective;
    const bool is_here =
        &o == &t || (waits && o.mask == mask && std::strcmp(o.waits_for, name) == 0 && same(o.site, site));
    if (waits && !is_here && (o.mask >> (t.index % 32) & 1))  // if it waits for others, it may come yet
      fail(here() + "the warp has diverged: lane " + std::to_string(lane) + " is in " + o.waits_for + ", " +
           text(o.site));
    complete &= is_here;
    lanes[lane] = o.brought;
    members[count++] = first + lane;
  }
  if (!complete) return wait(State::kCollective, name, site);
  if (combine) combine(lanes);
  if (orders_memory) race::join(members, count);
  for (size_t i = 0; i < count; ++i)
    if (members[i] != t.index) make_ready(threads_[members[i]]);
}

// ---- memory -------------------------------------------------------------------------------------

void* Processor::shared_array(const void* declaration, size_t bytes, size_t alignment, Site site) {
  for (const SharedArray& a : arrays_)
    if (a.declaration == declaration) return arena_ + a.offset;
  arena_used_ += bytes;
  if (arena_used_ > grid_->shared_most)
    fail("more than " + std::to_string(grid_->shared_most >> 10) + " KiB of shared memory, " + text(site));
  // An array gets the alignment that it asks for, and as little more as possible.
  const size_t step = std::max<size_t>(alignment, 16);
  const size_t offset = (arena_top_ + kRedZone + step - 1) / step * step + (alignment < 16 ? 8 : 0);
  const size_t end = offset + bytes + kRedZone;
  if (end > kArena) fail("too many shared arrays, " + text(site));
  unpoison(arena_ + arena_top_, end - arena_top_);
  std::memset(arena_ + arena_top_, kRedByte, offset - arena_top_);
  std::memset(arena_ + offset + bytes, kRedByte, kRedZone);
  poison(arena_ + arena_top_, end - arena_top_);
  unpoison(arena_ + offset, bytes);
  arrays_.push_back({declaration, offset, bytes});
  arena_top_ = end;
  return arena_ + offset;
}

bool Processor::is_shared(const void* p, size_t bytes) const {
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - arena_);
  return std::any_of(arrays_.begin(), arrays_.end(), [&](const SharedArray& a) {
    return offset >= a.offset && offset + bytes <= a.offset + a.bytes;
  });
}

void Processor::copy_async(void* to, const void* from, Site site, const void* code) {
  if (!is_shared(to, 16)) fail("asynchronous copy to outside of shared arrays, " + text(site));
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
    fail("asynchronous copy between addresses that are not multiples of 16, " + text(site));
  Copy copy = {to, from, self().groups, false, race::copy(to, from, 16, code)};
  if (settings.copies == Copies::kEager || (settings.copies == Copies::kRandom && random_() % 2))
    perform(copy);
  self().copies.push_back(copy);
}

void Processor::perform(Copy& copy) {
  if (copy.done) return;
  if (copy.from)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
  copy.done = true;
}

void Processor::wait_for_copies(unsigned groups_left) {
  EmulatedThread& t = self();
  auto copy = t.copies.begin();
  for (; copy != t.copies.end() && copy->group + groups_left < t.groups; ++copy) {
    perform(*copy);
    race::copied(copy->ticket);
  }
  t.copies.erase(t.copies.begin(), copy);
}

}  // namespace simt
