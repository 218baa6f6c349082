// The race detector: the functions that -fsanitize=thread makes a compiler call at each access, in place
// of the sanitizer's own library, which forgets accesses and knows nothing of blocks and barriers. It
// keeps vector clocks, exactly, for every emulated thread, of shared and of global memory.
//
// Blocks run one after the other here, but are ordered only by what orders them on a GPU.
#include "race.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine.h"

namespace simt {
namespace race {
namespace {

// An agent is a thread of the block (its index), or the engine that copies for it (its index + threads).
// A clock counts an agent's steps; `Seen` says, by block and agent, which steps are known to be past.
using Clock = std::vector<uint32_t>;
using Seen = std::map<unsigned, Clock>;

void merge(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}
void merge(Seen& into, const Seen& from) {
  for (const auto& [block, clock] : from) merge(into[block], clock);
}

struct Agent {
  Clock now;         // of the agents of its own block
  Seen others;       // of other blocks
  Seen at_fence;     // what it knew at its last fence: what its atomic writes tell
  Seen from_atomic;  // what its atomic reads were told: known after its next fence
};

struct Access {
  unsigned block = 0;
  uint32_t agent = 0, clock = 0;  // clock 0: none
  const void* code = nullptr;
};

// One byte of memory.
struct Cell {
  Access write, read;             // the last ones
  Access foreign_read;            // the last read of another block than `read`'s
  std::vector<uint32_t> readers;  // of `read`'s block, by agent, where there are several
  bool atomic = false;            // the write is
};

constexpr uintptr_t kPage = 1024;
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
std::vector<std::pair<uintptr_t, uintptr_t>> ignored;
std::unordered_map<uintptr_t, Seen> told;  // by atomics, by address
std::vector<Agent> agents;
// Barriers of sm_90a: what this phase and the one before were given. Of the block's own agents: these
// barriers are shared memory.
struct Phases {
  Clock given, over;
};
std::unordered_map<const void*, Phases> barriers;
unsigned block;
uint32_t threads;
uintptr_t shared_begin, shared_end;

Cell& cell(uintptr_t address) {
  std::unique_ptr<Cell[]>& cells = pages[address / kPage];
  if (!cells) cells.reset(new Cell[kPage]);
  return cells[address % kPage];
}

bool ordered(const Access& before, const Agent& me) {
  if (before.clock == 0) return true;
  if (before.block == block) return before.clock <= me.now[before.agent];
  const auto seen = me.others.find(before.block);
  return seen != me.others.end() && before.clock <= seen->second[before.agent];
}

// The line of the kernel's source, if binutils and debug information tell: of the functions that were
// inlined at this address, the innermost one that is not the emulation's.
std::string place(const void* code) {
  Dl_info info;
  if (!code || !dladdr(code, &info)) return "?";
  char command[1200], line[512];
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1;
  std::snprintf(command, sizeof command, "addr2line -i -s -e '%s' %#tx 2>/dev/null", info.dli_fname, offset);
  std::string found;
  if (FILE* pipe = popen(command, "r")) {
    while (std::fgets(line, sizeof line, pipe))
      if (found.empty() && line[0] != '?' && !std::strstr(line, "emulation.h") &&
          !std::strstr(line, "async.h"))
        found.assign(line, std::strcspn(line, "\n "));
    pclose(pipe);
  }
  if (!found.empty()) return found;
  std::snprintf(line, sizeof line, "code at %#tx", offset);
  return line;
}

std::string who(const Access& a) {
  return (a.agent < threads ? "thread " : "an asynchronous copy of thread ") +
         std::to_string(a.agent % threads) + " of block " + std::to_string(a.block) + ", " + place(a.code);
}

[[noreturn]] void report(const char* what, uintptr_t address, const void* code, const Access& other,
                         const char* other_what) {
  const bool shared = address >= shared_begin && address < shared_end;
  const std::string text = std::string(what) + " of " + (shared ? "shared" : "global") + " memory, " +
                           place(code) + ", races with the " + other_what + " by " + who(other);
  fail({nullptr, 0}, "%s", text.c_str());
}

void check_byte(uintptr_t address, const Access& now, const Agent& me, bool write, bool atomic) {
  Cell& c = cell(address);
  const char* what = write ? "a write" : "a read";
  if (!(atomic && c.atomic) && !ordered(c.write, me)) report(what, address, now.code, c.write, "write");
  if (write) {
    if (!ordered(c.foreign_read, me)) report(what, address, now.code, c.foreign_read, "read");
    for (uint32_t a = 0; a < c.readers.size(); ++a) {
      const Access reader = {c.read.block, a, c.readers[a], c.read.code};
      if (!ordered(reader, me)) report(what, address, now.code, reader, "read");
    }
    if (!ordered(c.read, me)) report(what, address, now.code, c.read, "read");
    c.write = now;
    c.atomic = atomic;
    c.read = c.foreign_read = Access();
    c.readers.clear();
    return;
  }
  if (c.write.clock == 0 && address >= shared_begin && address < shared_end)
    fail({nullptr, 0}, "a read of shared memory that nothing has written, %s", place(now.code).c_str());
  if (c.read.clock && c.read.block != now.block) {
    c.foreign_read = c.read;
    c.readers.clear();
  } else if (c.read.clock && c.read.agent != now.agent && c.readers.empty()) {
    c.readers.resize(2 * threads);
    c.readers[c.read.agent] = c.read.clock;
  }
  if (!c.readers.empty()) c.readers[now.agent] = now.clock;
  c.read = now;
}

void access_by(uint32_t agent, uintptr_t address, size_t bytes, bool write, bool atomic, const void* code) {
  for (const auto& [begin, end] : ignored)
    if (address >= begin && address < end) return;
  const Agent& me = agents[agent];
  const Access now = {block, agent, me.now[agent], code};
  for (size_t i = 0; i < bytes; ++i) check_byte(address + i, now, me, write, atomic);
}

void access(const void* p, size_t bytes, bool write, const void* code) {
  if (current) access_by(current->index, reinterpret_cast<uintptr_t>(p), bytes, write, false, code);
}

}  // namespace

void ignore(const void* begin, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(begin);
  ignored.emplace_back(address, address + bytes);
}

void begin_grid() {
  pages.clear();
  told.clear();
  ignored.clear();
  // The kernel's arguments are on the stack of whoever launches it.
  pthread_attr_t attributes;
  void* stack = nullptr;
  size_t bytes = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes);
  pthread_attr_destroy(&attributes);
  ignore(stack, bytes);
}

void begin_block(unsigned number, unsigned count, const void* shared, size_t shared_bytes) {
  block = number;
  threads = count;
  shared_begin = reinterpret_cast<uintptr_t>(shared);
  shared_end = shared_begin + shared_bytes;
  for (uintptr_t page = shared_begin / kPage; page <= shared_end / kPage; ++page) pages.erase(page);
  for (auto i = told.begin(); i != told.end();)
    i = i->first >= shared_begin && i->first < shared_end ? told.erase(i) : std::next(i);
  barriers.clear();
  agents.assign(2 * threads, Agent());
  for (uint32_t a = 0; a < 2 * threads; ++a) {
    agents[a].now.resize(2 * threads);
    agents[a].now[a] = 1;
  }
}

void join(const unsigned* members, size_t count) {
  Agent all;
  for (size_t i = 0; i < count; ++i) {
    merge(all.now, agents[members[i]].now);
    merge(all.others, agents[members[i]].others);
  }
  for (size_t i = 0; i < count; ++i) {
    Agent& agent = agents[members[i]];
    agent.now = all.now;
    agent.others = all.others;
    ++agent.now[members[i]];
  }
}

void atomic(const void* p, size_t bytes, const void* code) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  Agent& me = agents[current->index];
  access_by(current->index, address, bytes, true, true, code);
  merge(me.from_atomic, told[address]);
  merge(told[address], me.at_fence);
}

void fence() {
  Agent& me = agents[current->index];
  for (auto& [number, clock] : me.from_atomic) merge(number == block ? me.now : me.others[number], clock);
  me.from_atomic.clear();
  me.at_fence = me.others;
  me.at_fence[block] = me.now;
  ++me.now[current->index];
}

uint32_t copy(void* to, const void* from, size_t bytes, const void* code) {
  const uint32_t engine = threads + current->index;
  Agent& copier = agents[engine];
  merge(copier.now, agents[current->index].now);
  merge(copier.others, agents[current->index].others);
  ++copier.now[engine];
  if (from) access_by(engine, reinterpret_cast<uintptr_t>(from), bytes, false, false, code);
  access_by(engine, reinterpret_cast<uintptr_t>(to), bytes, true, false, code);
  return copier.now[engine];
}

void copied(uint32_t ticket) {
  uint32_t& seen = agents[current->index].now[threads + current->index];
  seen = std::max(seen, ticket);
}

uint32_t read_beside(const void* from, size_t bytes, const void* code) {
  const uint32_t engine = threads + current->index;
  Agent& reader = agents[engine];
  merge(reader.now, agents[current->index].now);
  merge(reader.others, agents[current->index].others);
  ++reader.now[engine];
  access_by(engine, reinterpret_cast<uintptr_t>(from), bytes, false, false, code);
  return reader.now[engine];
}

void copied_for(unsigned reader, unsigned thread, uint32_t ticket) {
  uint32_t& seen = agents[reader].now[threads + thread];
  seen = std::max(seen, ticket);
}

void give(const void* barrier) {
  Agent& me = agents[current->index];
  merge(barriers[barrier].given, me.now);
  ++me.now[current->index];
}

void give_copy(const void* barrier, unsigned thread, uint32_t ticket) {
  Clock& given = barriers[barrier].given;
  given.resize(2 * threads);
  given[threads + thread] = std::max(given[threads + thread], ticket);
}

void turn(const void* barrier) {
  Phases& phases = barriers[barrier];
  merge(phases.over, phases.given);
  phases.given.clear();
}

void take(const void* barrier) { merge(agents[current->index].now, barriers[barrier].over); }

}  // namespace race
}  // namespace simt

using simt::race::access;

extern "C" {
#define SIMT_ACCESS(BYTES)                                                                             \
  void __tsan_read##BYTES(void* p) { access(p, BYTES, false, __builtin_return_address(0)); }           \
  void __tsan_write##BYTES(void* p) { access(p, BYTES, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##BYTES(void* p) { access(p, BYTES, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##BYTES(void* p) { access(p, BYTES, true, __builtin_return_address(0)); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Of launchers, which run on the host; kernels' atomics are the engine's.
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_load(const volatile uint64_t* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_atomic64_store(volatile uint64_t* p, uint64_t v, int) {
  __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
}
