// Pooling by windows, plain and adaptive: the contract between Python and the kernels.
#pragma once

#include <cstdint>

#include "geometry.h"
#include "isa.h"
#include "types.h"

namespace fastops {

// x: (n, c, in), y: (n, c, out). Both dense, in the same layout: contiguous (n, c, d, h, w), or
// channels_last (n, d, h, w, c).
struct PoolParams {
  DType dtype = DType::kF32;
  bool channels_last = false;
  int64_t n = 0;
  int64_t c = 0;
  Extent in;
  Extent out;
  Extent kernel;
  Extent stride;
  Extent pad{0, 0, 0};  // before the first element; what follows the last one is implied by out
  Extent dilation;
  bool adaptive = false;          // windows from in and out alone; kernel to dilation stay as they are here
  bool count_include_pad = true;  // averages only: padding counts in the divisor
  int64_t divisor_override = 0;   // averages only; 0: none; may be negative, as in torch
  // Maxima only: how positions are said. The CPU kernels know those that are flat in the input's d·h·w.
  IndexType positions = IndexType::kI64;
};

FASTOPS_INLINE PoolAxis axis_d(const PoolParams& p) {
  return {p.in.d, p.out.d, p.kernel.d, p.stride.d, p.pad.d, p.dilation.d, p.adaptive};
}
FASTOPS_INLINE PoolAxis axis_h(const PoolParams& p) {
  return {p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h, p.adaptive};
}
FASTOPS_INLINE PoolAxis axis_w(const PoolParams& p) {
  return {p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w, p.adaptive};
}

namespace cpu {
// y = average of x over each window (dilation must be 1).
template <Isa>
void avg_pool(const PoolParams& p, const void* x, void* y, int threads);
// dx = the transpose of avg_pool applied to dy; every element of dx is written.
template <Isa>
void avg_pool_adjoint(const PoolParams& p, const void* dy, void* dx, int threads);
// y = maximum of x over each window; positions (null: not wanted) = where it was found, in y's shape and
// layout. Equal values: the first in raster order. NaN: the last NaN. A window without any element of
// the input (dilation can make one) gives -inf at -1.
template <Isa>
void max_pool(const PoolParams& p, const void* x, void* y, void* positions, int threads);
}  // namespace cpu

// Kernels on a CUDA stream (a cudaStream_t).
namespace cuda {
void avg_pool(const PoolParams& p, const void* x, void* y, void* stream);
void avg_pool_adjoint(const PoolParams& p, const void* dy, void* dx, void* stream);
void max_pool(const PoolParams& p, const void* x, void* y, void* positions, void* stream);
}  // namespace cuda

}  // namespace fastops
