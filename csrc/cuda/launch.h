// How kernels are launched: the one place that starts them, and that turns a CUDA error into an
// exception naming the kernel. No <<<>>>, so that it is C++.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../device.h"
#include "../geometry.h"

namespace fastops {
namespace cuda {
namespace {

inline void check(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next one to ask, perhaps torch, would be told of this error
  throw std::runtime_error(std::string("fastops: CUDA kernel ") + kernel + ": " + cudaGetErrorString(error));
}

// Of the shared memory that a kernel may have without asking, 48 KiB with its static arrays: what those
// leave.
constexpr size_t kSharedUnasked = size_t{32} << 10;

// Starts kernel(args...) on the stream; the arguments are converted to the kernel's own parameter types.
template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared, void* stream,
            Args... args) {
  if (shared > kSharedUnasked)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          name);
  const cudaLaunchConfig_t config = {grid, block, shared, static_cast<cudaStream_t>(stream), nullptr, 0};
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), name);
}

// Sets `bytes` bytes at p to `byte`.
inline void fill_bytes(const char* name, void* p, int byte, int64_t bytes, void* stream) {
  check(cudaMemsetAsync(p, byte, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)), name);
}

// The current device, as plans want to know it; asked once per device.
inline Device current_device() {
  constexpr int kMost = 64;
  static std::atomic<const Device*> known[kMost];
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "plan");
  std::atomic<const Device*>& slot = known[ordinal % kMost];
  if (const Device* device = slot.load()) return *device;
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, ordinal), "plan");
    return value;
  };
  Device* device = new Device;  // for as long as the process lives
  device->capability = ask(cudaDevAttrComputeCapabilityMajor) * 10 + ask(cudaDevAttrComputeCapabilityMinor);
  device->multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device->shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device->l2_bytes = ask(cudaDevAttrL2CacheSize);
  // Some virtual GPUs do not say these; a model with zeros would be none.
  const auto ask_or = [&](cudaDeviceAttr attribute, int otherwise) {
    const int value = ask(attribute);
    return value > 0 ? value : otherwise;
  };
  device->clock_hz = ask_or(cudaDevAttrClockRate, 1'000'000) * 1e3;
  // Two transfers per clock; a copy reaches nine tenths.
  device->bandwidth = 0.9 * 2e3 * ask_or(cudaDevAttrMemoryClockRate, 1'000'000) *
                      ask_or(cudaDevAttrGlobalMemoryBusWidth, 256) / 8;
#if defined(FASTOPS_SM90A)  // compiled for it
  const char* const sm90 = std::getenv("FASTOPS_SM90");
  device->hopper_kernels = !sm90 || std::string(sm90) != "0";
#endif
  slot.store(device);
  return *device;
}

constexpr int kThreads = 256;

// Blocks of kThreads threads for `work` items in a grid-stride loop: enough to fill any GPU a few
// times over; the loop takes the rest.
inline unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(imax(1, imin(ceil_div(work, kThreads), int64_t{1} << 16)));
}

// The items of this thread in a grid-stride loop over [0, work): for (auto i = first_item(); i < work;
// i += item_stride()).
__device__ inline int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

}  // namespace
}  // namespace cuda
}  // namespace fastops
