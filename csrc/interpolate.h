// Interpolation (resizing): the contract between Python and the kernels.
#pragma once

#include <cstdint>

#include "isa.h"
#include "taps.h"
#include "types.h"

namespace fastops {

// One factor per spatial dimension; 0: out / in.
struct Factors {
  double d = 0;
  double h = 0;
  double w = 0;
};

// x: (n, c, in), y: (n, c, out). Both dense, in the same layout: contiguous (n, c, d, h, w), or
// channels_last (n, d, h, w, c).
struct InterpolateParams {
  DType dtype = DType::kF32;
  bool channels_last = false;
  int64_t n = 0;
  int64_t c = 0;
  Extent in;
  Extent out;
  Filter filter = Filter::kNearest;
  Factors scale;               // outputs per input where the caller gave it, for coordinates
  bool align_corners = false;  // weighted filters only
  bool antialias = false;      // weighted filters only
};

FASTOPS_INLINE SampleAxis axis_d(const InterpolateParams& p) {
  return tap_axis(p.in.d, p.out.d, p.scale.d, p.filter, p.align_corners, p.antialias);
}
FASTOPS_INLINE SampleAxis axis_h(const InterpolateParams& p) {
  return tap_axis(p.in.h, p.out.h, p.scale.h, p.filter, p.align_corners, p.antialias);
}
FASTOPS_INLINE SampleAxis axis_w(const InterpolateParams& p) {
  return tap_axis(p.in.w, p.out.w, p.scale.w, p.filter, p.align_corners, p.antialias);
}

namespace cpu {
// y = the nearest elements of x, for kNearest and kNearestExact; any dtype.
template <Isa>
void interpolate_nearest(const InterpolateParams& p, const void* x, void* y, int threads);
// dx[i] = sum of the dy whose outputs copy input i; every element of dx is written.
template <Isa>
void interpolate_nearest_adjoint(const InterpolateParams& p, const void* dy, void* dx, int threads);

// y = weighted sums of x, for the other filters; floating point. 2-d only: in.d and out.d are 1.
template <Isa>
void interpolate_weighted(const InterpolateParams& p, const void* x, void* y, void* workspace, int threads);
// dx = the transpose of interpolate_weighted applied to dy; floating point.
template <Isa>
void interpolate_weighted_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                  int threads);
// The weighted forward for uint8, in fixed point.
template <Isa>
void interpolate_weighted_u8(const InterpolateParams& p, const void* x, void* y, void* workspace,
                             int threads);
// Bytes of workspace that each of these wants.
template <Isa>
int64_t interpolate_weighted_workspace(const InterpolateParams& p, int threads);
template <Isa>
int64_t interpolate_weighted_adjoint_workspace(const InterpolateParams& p, int threads);
template <Isa>
int64_t interpolate_weighted_u8_workspace(const InterpolateParams& p, int threads);
}  // namespace cpu

// Kernels on a CUDA stream (a cudaStream_t).
namespace cuda {
void interpolate_nearest(const InterpolateParams& p, const void* x, void* y, void* stream);
void interpolate_nearest_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                 void* stream);
int64_t interpolate_nearest_adjoint_workspace(const InterpolateParams& p);
void interpolate_weighted(const InterpolateParams& p, const void* x, void* y, void* workspace, void* stream);
void interpolate_weighted_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                  void* stream);
void interpolate_weighted_u8(const InterpolateParams& p, const void* x, void* y, void* workspace,
                             void* stream);
int64_t interpolate_weighted_workspace(const InterpolateParams& p);
int64_t interpolate_weighted_adjoint_workspace(const InterpolateParams& p);
int64_t interpolate_weighted_u8_workspace(const InterpolateParams& p);
}  // namespace cuda

}  // namespace fastops
