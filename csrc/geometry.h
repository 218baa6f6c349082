// Index arithmetic, written once for host and device: which inputs a window covers, which windows
// cover an input. Output *sizes* are computed in Python (fastops/ops/shapes.py), where they may be
// symbolic; the kernels are handed both sizes.
#pragma once

#include <cstdint>

#include "types.h"

namespace fastops {

FASTOPS_INLINE int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
FASTOPS_INLINE int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
// Division of a non-negative or negative a by a positive b, rounded up / down.
FASTOPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
FASTOPS_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
// The smallest multiple of b that is at least a.
FASTOPS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A half-open range of positions along one axis.
struct Range {
  int64_t begin;
  int64_t end;
};

// One spatial axis of a pooling op: `out` windows over `in` positions.
struct PoolAxis {
  int64_t in;
  int64_t out;
  int64_t kernel;
  int64_t stride;
  int64_t pad;
  int64_t dilation;
  bool adaptive;  // windows follow from in and out alone; kernel, stride, pad, dilation are unused
};

// First position (may be negative: padding) of window o.
FASTOPS_INLINE int64_t window_start(const PoolAxis& a, int64_t o) {
  return a.adaptive ? o * a.in / a.out : o * a.stride - a.pad;
}

// Positions of window o inside the input, for dilation 1. Adaptive windows are
// [floor(o·in/out), ceil((o+1)·in/out)), and may overlap.
FASTOPS_INLINE Range window(const PoolAxis& a, int64_t o) {
  if (a.adaptive) return {o * a.in / a.out, ceil_div((o + 1) * a.in, a.out)};
  const int64_t start = o * a.stride - a.pad;
  return {imax(start, 0), imin(start + a.kernel, a.in)};
}

// Taps of window o that lie inside the input: positions are window_start(o) + tap · dilation.
FASTOPS_INLINE Range window_taps(const PoolAxis& a, int64_t o) {
  if (a.adaptive) return {0, ceil_div((o + 1) * a.in, a.out) - o * a.in / a.out};
  const int64_t start = o * a.stride - a.pad;
  return {start < 0 ? ceil_div(-start, a.dilation) : 0,
          imin(a.kernel, start < a.in ? ceil_div(a.in - start, a.dilation) : 0)};
}

// No window of the axis has more taps, counted from its start, inside the input or not.
FASTOPS_INLINE int64_t most_taps(const PoolAxis& a) {
  if (!a.adaptive) return a.kernel;
  return a.out == 0 ? 0 : a.in % a.out == 0 ? a.in / a.out : a.in / a.out + 2;
}

// Windows whose span covers position i, for dilation 1: the inverse of window().
FASTOPS_INLINE Range windows_covering(const PoolAxis& a, int64_t i) {
  if (a.adaptive) return {i * a.out / a.in, imin(ceil_div((i + 1) * a.out, a.in), a.out)};
  // o·stride − pad ≤ i < o·stride − pad + kernel
  return {imax(ceil_div(i + a.pad - a.kernel + 1, a.stride), 0), imin((i + a.pad) / a.stride + 1, a.out)};
}

// How many positions window o counts in an average: with padding, it reaches at most `pad` past the
// input on either side (ceil_mode may let it start inside and end beyond).
FASTOPS_INLINE int64_t window_count(const PoolAxis& a, int64_t o, bool include_pad) {
  if (include_pad && !a.adaptive) {
    const int64_t start = o * a.stride - a.pad;
    return imin(start + a.kernel, a.in + a.pad) - start;
  }
  const Range r = window(a, o);
  return r.end - r.begin;
}

// ---- convolution ---------------------------------------------------------------------------------

// One spatial axis of "a sum over taps": output position out0 + g · out_step, for g in [0, grid), is
// the sum over j in [0, taps) of weight tap (tap0 + j · tap_step) times the source element at
// g · step + off0 + j · off_step, where that lies in [0, source). Both the convolution and each
// stride phase of its input gradient have this form, so one kernel serves them.
struct TapAxis {
  int64_t source;
  int64_t grid;
  int64_t out0;
  int64_t out_step;
  int64_t step;
  int64_t taps;
  int64_t tap0;
  int64_t tap_step;
  int64_t off0;
  int64_t off_step;
};

// y[o] = Σ_r w[r] · x[o · stride − pad + r · dilation].
FASTOPS_INLINE TapAxis forward_taps(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                    int64_t dilation) {
  return {in, out, 0, 1, stride, kernel, 0, 1, -pad, dilation};
}

FASTOPS_INLINE int64_t gcd(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t r = a % b;
    a = b;
    b = r;
  }
  return a;
}

// dx[i] = Σ_r w[r] · dy[(i + pad − r · dilation) / stride], over the r for which that divides. Which r
// do depends on i mod stride only: for the positions phase, phase + stride, … they are tap0, tap0 +
// stride / gcd(stride, dilation), …, and each r belongs to exactly one phase. No zero is multiplied.
FASTOPS_INLINE TapAxis input_grad_taps(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                       int64_t dilation, int64_t phase) {
  const int64_t tap_step = stride / gcd(stride, dilation);
  int64_t tap0 = 0;
  while (tap0 < imin(tap_step, kernel) && (phase + pad - tap0 * dilation) % stride != 0) ++tap0;
  const int64_t taps = tap0 < imin(tap_step, kernel) ? ceil_div(kernel - tap0, tap_step) : 0;
  return {out,
          phase < in ? ceil_div(in - phase, stride) : 0,
          phase,
          stride,
          1,
          taps,
          tap0,
          tap_step,
          floor_div(phase + pad - tap0 * dilation, stride),
          -tap_step * dilation / stride};
}

// The grid positions g in [begin, end) ∩ [from, to) whose source element for tap j exists.
FASTOPS_INLINE Range grid_inside(const TapAxis& a, int64_t j, int64_t from, int64_t to) {
  const int64_t offset = a.off0 + j * a.off_step;
  const bool unit = a.step == 1;  // the common case, spared two divisions
  const int64_t begin = unit ? -offset : ceil_div(-offset, a.step);
  const int64_t end = unit ? a.source - offset : floor_div(a.source - 1 - offset, a.step) + 1;
  const Range r = {imax(begin, from), imin(end, to)};
  return r.begin < r.end ? r : Range{from, from};
}

}  // namespace fastops
