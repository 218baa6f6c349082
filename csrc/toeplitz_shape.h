// How the depthwise convolution on tensor cores (Toeplitz) shares out its work: for the plan and the kernel.
#pragma once

#include "conv_plan.h"

namespace fastops {

// A block computes squares of a result's plane, of so many planes, a warp each. With 8 channels a pixel of
// channels_last is 16 bytes.
constexpr int kToeplitzTile = 32, kToeplitzPlanes = 8;
// Taps along w are t = 8 · d + (column of the source) − (column of the result), both inside of 8s: d goes
// from −1 to `reach`. Kernels are compiled for a reach of 2, 17 taps, and of 4, 33.
inline int64_t toeplitz_reach(int64_t taps) { return taps <= 17 ? 2 : 4; }
constexpr int64_t kToeplitzMost = 33, kToeplitzLeast = 9;

// Columns of the source that a square's rows are products of: whole 16s. And elements from row to row in
// shared memory, an odd number of 16 bytes.
constexpr int toeplitz_columns(int reach) { return 16 * ((reach + 3) / 2 + 1); }
constexpr int toeplitz_pitch(int reach) { return toeplitz_columns(reach) + 8; }
// A row of taps with zeros on both sides, and in the weight gradient a row of x; each is there twice.
constexpr int kToeplitzTaps = 64;

// Bytes of shared memory: planes, and the weights.
inline int64_t toeplitz_shared(const ConvParams& p) {
  const int pitch = toeplitz_pitch(static_cast<int>(toeplitz_reach(p.kernel.w)));
  return 2 * kToeplitzPlanes *
         ((kToeplitzTile + p.kernel.h - 1) * pitch + p.kernel.h * int64_t{2} * kToeplitzTaps);
}

// The weight gradient: up to 32 × 32 taps, whose sums a warp has. A block goes through its part of all pieces
// of so many rows of x × columns of dy; the latter has 16 bytes more from row to row, an odd number of them.
constexpr int64_t kToeplitzMostGrad = 32;
constexpr int kToeplitzRows = 16, kToeplitzColumns = 32, kToeplitzGradPitch = kToeplitzColumns + 8;
// Of x, for `wide` · 16 taps.
constexpr int toeplitz_grad_columns(int wide) { return 16 * wide + kToeplitzColumns; }

inline int64_t toeplitz_pieces(const ConvParams& p) {
  return p.n * ceil_div(p.in.h, kToeplitzRows) * ceil_div(p.out.w, kToeplitzColumns);
}

inline int64_t toeplitz_grad_shared(const ConvParams& p) {
  return 2 * kToeplitzPlanes *
         (kToeplitzRows * int64_t{2} * kToeplitzTaps + (kToeplitzRows + p.kernel.h - 1) * kToeplitzGradPitch);
}

}  // namespace fastops
