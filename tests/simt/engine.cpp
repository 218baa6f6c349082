// What kernels ask of the engine goes to the processor that runs them; and the launch of a grid.
#include "engine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "processor.h"
#include "race.h"

namespace simt {

__thread Thread* current = nullptr;
Settings settings;

namespace {

std::mutex one_at_a_time;  // launches
// Dynamic shared memory that kernels have asked for, and the text of this thread's last error.
std::map<const void*, size_t> asked_for;
thread_local std::string last_error = "no error";

cudaError_t error(cudaError_t code, const char* message) {
  last_error = message;
  return code;
}

template <typename T>
bool compare_exchange_as(void* p, void* expected, const void* desired) {
  T value;
  std::memcpy(&value, desired, sizeof value);
  return __atomic_compare_exchange_n(static_cast<T*>(p), static_cast<T*>(expected), value, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

}  // namespace

void fail(Site site, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  processor->fail(message + (site.file ? ", " + text(site) : std::string()));
}

unsigned barrier(bool predicate, Site site) { return processor->barrier(predicate, site); }
void collective(uint32_t mask, const char* name, void* brought, void (*combine)(void* const*),
                bool orders_memory, Site site) {
  processor->collective(mask, name, brought, combine, orders_memory, site);
}
void* shared_array(const void* declaration, size_t bytes, size_t alignment, Site site) {
  return processor->shared_array(declaration, bytes, alignment, site);
}
void* dynamic_shared_array(Site site) { return processor->dynamic_shared_array(site); }
void check_shared(const void* p, size_t bytes, const char* name, Site site) {
  if (!processor->is_shared(p, bytes)) fail(site, "%s: outside of shared arrays", name);
}
void copy_async(void* to, const void* from, Site site) {
  processor->copy_async(to, from, site, __builtin_return_address(0));
}
void commit_copies() { processor->commit_copies(); }
void wait_for_copies(unsigned groups_left) { processor->wait_for_copies(groups_left); }

bool compare_exchange(void* p, void* expected, const void* desired, size_t bytes) {
  race::atomic(p, bytes, __builtin_return_address(0));
  switch (bytes) {
    case 1:
      return compare_exchange_as<uint8_t>(p, expected, desired);
    case 2:
      return compare_exchange_as<uint16_t>(p, expected, desired);
    case 4:
      return compare_exchange_as<uint32_t>(p, expected, desired);
    default:
      return compare_exchange_as<uint64_t>(p, expected, desired);
  }
}

void fence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  race::fence();
}

cudaError_t run_grid(const cudaLaunchConfig_t& config, const void* kernel, void (*entry)(void*),
                     void* arguments) {
  static std::vector<std::unique_ptr<Processor>> processors;
  const std::lock_guard<std::mutex> lock(one_at_a_time);

  const dim3 &g = config.gridDim, &b = config.blockDim;
  const uint64_t threads = uint64_t{b.x} * b.y * b.z, blocks = uint64_t{g.x} * g.y * g.z;
  if (threads == 0 || threads > kMaxThreads || b.z > 64 || blocks == 0 || g.x > 2147483647u || g.y > 65535 ||
      g.z > 65535)
    return error(cudaErrorInvalidConfiguration, "invalid configuration argument");
  const auto asked = asked_for.find(kernel);
  if (config.dynamicSmemBytes > (asked == asked_for.end() ? kSharedUnasked : asked->second))
    return error(cudaErrorInvalidValue, "more dynamic shared memory than cudaFuncSetAttribute has asked for");

  Grid grid(config, entry, arguments, blocks, asked == asked_for.end() ? kSharedUnasked : kSharedMax);
  if (settings.last_blocks && blocks >= settings.many_blocks)
    grid.next = blocks - std::min(blocks, settings.last_blocks);
  race::begin_grid();
  unsigned workers = settings.workers ? settings.workers : std::max(1u, std::thread::hardware_concurrency());
  if (race::kOn) workers = 1;
  workers = static_cast<unsigned>(std::min<uint64_t>(workers, blocks));
  while (processors.size() < workers) processors.push_back(std::make_unique<Processor>());
  std::vector<std::thread> others;
  for (unsigned i = 1; i < workers; ++i) others.emplace_back([&grid, i] { processors[i]->work(grid); });
  processors[0]->work(grid);
  for (std::thread& other : others) other.join();
  return grid.failed ? error(cudaErrorLaunchFailure, grid.error.c_str()) : cudaSuccess;
}

}  // namespace simt

// ---- the functions of the CUDA runtime that the host code of kernels calls ------------------------

extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return simt::last_error.c_str(); }
cudaError_t cudaMemsetAsync(void* p, int byte, size_t bytes, cudaStream_t) {
  if (simt::settings.last_blocks == 0) std::memset(p, byte, bytes);
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* ordinal) {
  *ordinal = 0;
  return cudaSuccess;
}
// A GPU of the newest kind, but with so few processors that small tensors are divided among them too.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 6;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(simt::kSharedMax);
      break;
    case cudaDevAttrL2CacheSize:
      *value = 4 << 20;
      break;
    case cudaDevAttrClockRate:  // kHz
      *value = 1000000;
      break;
    case cudaDevAttrMemoryClockRate:  // kHz
      *value = 1000000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:  // bits
      *value = 1024;
      break;
    default:
      return simt::error(cudaErrorInvalidValue, "the emulation has no such attribute");
  }
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > simt::kSharedMax)
    return simt::error(cudaErrorInvalidValue, "no GPU has so much shared memory");
  const std::lock_guard<std::mutex> lock(simt::one_at_a_time);
  simt::asked_for[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
}
