// Descriptions of tensors for the copies of primitives_sm90.cuh. The driver encodes them; it is asked for by
// name, so that nothing links to it.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

// The driver's function of that name, as of CUDA 12.0.
template <typename F>
F driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), name);
#else
  check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result), name);
#endif
  if (result != cudaDriverEntryPointSuccess || !found)
    throw std::runtime_error(std::string("fastops: the CUDA driver has no ") + name);
  return reinterpret_cast<F>(found);
}

inline void check_map(CUresult result) {
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("fastops: the CUDA driver refuses a tensor map, error " +
                             std::to_string(static_cast<int>(result)));
}

template <typename T>
constexpr CUtensorMapDataType tensor_map_type() {
  return std::is_same<T, __half>::value ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// Boxes of a dense tensor of 16-bit elements, sizes from the densest on; 64 elements of the first, swizzled.
template <typename T, int rank>
CUtensorMap tiled_map(const T* p, const int64_t (&sizes)[rank], const uint32_t (&box)[rank]) {
  static_assert(sizeof(T) == 2);
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t size[rank], stride[rank], bytes = sizeof(T);
  cuuint32_t each[rank];
  for (int i = 0; i < rank; ++i) {
    size[i] = static_cast<cuuint64_t>(sizes[i]);
    bytes *= size[i];
    stride[i] = bytes;  // of dimension i + 1
    each[i] = 1;
  }
  CUtensorMap map;
  check_map(encode(&map, tensor_map_type<T>(), rank, const_cast<T*>(p), size, stride, box, each,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

// The windows of an NHWC tensor, by their first elements: along an axis those are at -pad, -pad + stride, …,
// `out` in all. A copy takes `pixels` windows, and 64 channels, swizzled.
struct Windows {
  int64_t in, out, stride, pad;
  // A window begins at lower … in - 1 + upper.
  int64_t lower() const { return -pad; }
  int64_t upper() const { return (out - 1) * stride - pad + 1 - in; }
};
template <typename T>
CUtensorMap im2col_map(const T* p, int64_t n, int64_t c, const Windows& h, const Windows& w,
                       uint32_t pixels) {
  static_assert(sizeof(T) == 2);
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const auto u64 = [](int64_t v) { return static_cast<cuuint64_t>(v); };
  const cuuint64_t size[] = {u64(c), u64(w.in), u64(h.in), u64(n)};
  const cuuint64_t stride[] = {u64(2 * c), u64(2 * c * w.in), u64(2 * c * w.in * h.in)};
  const int lower[] = {static_cast<int>(w.lower()), static_cast<int>(h.lower())};
  const int upper[] = {static_cast<int>(w.upper()), static_cast<int>(h.upper())};
  const cuuint32_t each[] = {1, static_cast<cuuint32_t>(w.stride), static_cast<cuuint32_t>(h.stride), 1};
  CUtensorMap map;
  check_map(encode(&map, tensor_map_type<T>(), 4, const_cast<T*>(p), size, stride, lower, upper, 64, pixels,
                   each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
  return map;
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
