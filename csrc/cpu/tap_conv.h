// A convolution and each stride phase of its input gradient, seen as one problem: every output is a sum
// over taps and source channels. Shared by the dense and the depthwise kernels.
#pragma once

#include <cstdint>

#include "../conv.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

// The three axes of one phase.
struct TapAxes {
  TapAxis d, h, w;
};
inline int64_t grid_size(const TapAxes& a) { return a.d.grid * a.h.grid * a.w.grid; }
inline int64_t tap_count(const TapAxes& a) { return a.d.taps * a.h.taps * a.w.taps; }

// result[n, o, ·] = bias[o] + Σ_tap Σ_i weight(o, i, tap) · source[n, i, ·], in `groups` independent
// groups of `inner` source and `outer` result channels each.
struct TapConv {
  const ConvParams* p;
  bool input_grad;  // else forward
  int64_t inner;
  int64_t outer;
  Extent source;  // spatial sizes
  Extent result;
  // Element strides of the weight for one step of o, i and tap (flattened over the kernel).
  int64_t w_outer;
  int64_t w_inner;
  int64_t w_tap;
};

inline TapConv tap_conv(const ConvParams& p, bool input_grad) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups, taps = volume(p.kernel);
  const int64_t w_k = c * taps, w_c = p.weight_channels_last ? 1 : taps,
                w_tap = p.weight_channels_last ? c : 1;
  if (input_grad) return {&p, true, k, c, p.out, p.in, w_c, w_k, w_tap};
  return {&p, false, c, k, p.in, p.out, w_k, w_c, w_tap};
}

// Weights of group g begin here: groups are blocks of k.
inline int64_t weight_group(const TapConv& t, int64_t g) {
  return g * (t.p->k / t.p->groups) * (t.p->c / t.p->groups) * volume(t.p->kernel);
}

// Stride phases of the input gradient along each axis; those beyond the input are empty.
inline Extent phase_extent(const ConvParams& p) {
  return {imin(p.stride.d, p.in.d), imin(p.stride.h, p.in.h), imin(p.stride.w, p.in.w)};
}
inline int64_t phases(const TapConv& t) { return t.input_grad ? volume(phase_extent(*t.p)) : 1; }

inline TapAxes tap_axes(const TapConv& t, int64_t phase) {
  const ConvParams& p = *t.p;
  if (!t.input_grad)
    return {forward_taps(p.in.d, p.out.d, p.kernel.d, p.stride.d, p.pad.d, p.dilation.d),
            forward_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h),
            forward_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w)};
  const Extent e = phase_extent(p);
  const int64_t fw = phase % e.w, fh = phase / e.w % e.h, fd = phase / e.w / e.h;
  return {input_grad_taps(p.in.d, p.out.d, p.kernel.d, p.stride.d, p.pad.d, p.dilation.d, fd),
          input_grad_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h, fh),
          input_grad_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w, fw)};
}

// Where each position is read once and has one result, as in a 1×1 convolution, planes are single rows.
inline TapAxes merge_rows(TapAxes a) {
  const auto plain = [](const TapAxis& axis) {
    return axis.taps == 1 && axis.tap0 == 0 && axis.off0 == 0 && axis.step == 1 && axis.out_step == 1 &&
           axis.source == axis.grid;
  };
  if (!plain(a.w) || !plain(a.h)) return a;
  a.w.source = a.w.grid = a.h.grid * a.w.grid;
  a.h.source = a.h.grid = 1;
  return a;
}

// Tap number `tap` of a phase: its index along each axis, and its place in the weight's kernel.
struct Tap {
  int64_t d, h, w;
  int64_t index;
};
inline Tap tap_at(const TapConv& t, const TapAxes& a, int64_t tap) {
  const int64_t w = tap % a.w.taps, h = tap / a.w.taps % a.h.taps, d = tap / a.w.taps / a.h.taps;
  const Extent& kernel = t.p->kernel;
  const int64_t index = ((a.d.tap0 + d * a.d.tap_step) * kernel.h + a.h.tap0 + h * a.h.tap_step) * kernel.w +
                        a.w.tap0 + w * a.w.tap_step;
  return {d, h, w, index};
}

// Source coordinate of grid position g under tap j; it may lie outside.
inline int64_t source_at(const TapAxis& a, int64_t g, int64_t j) {
  return g * a.step + a.off0 + j * a.off_step;
}
inline bool inside(const TapAxis& a, int64_t position) { return position >= 0 && position < a.source; }
inline int64_t result_at(const TapAxis& a, int64_t g) { return a.out0 + g * a.out_step; }

// Copies `count` elements, by whole vectors, the last of which may overlap the one before.
template <int bytes, typename T>
inline void copy_vectors(const T* from, T* to, int64_t count) {
  constexpr int64_t n = bytes / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += n) {
    const int64_t at = imin(i, count - n);
    std::memcpy(static_cast<void*>(to + at), from + at, bytes);
  }
}

template <typename T>
inline void copy_elements(const T* from, T* to, int64_t count) {
  constexpr int size = static_cast<int>(sizeof(T));
  if (count <= 0) return;
  if (count >= 32) return copy_vectors<32 * size>(from, to, count);
  if (count >= 16) return copy_vectors<16 * size>(from, to, count);
  if (count >= 8) return copy_vectors<8 * size>(from, to, count);
  if (count >= 4) return copy_vectors<4 * size>(from, to, count);
  if (count >= 2) return copy_vectors<2 * size>(from, to, count);
  *to = *from;
}

template <typename A>
inline void copy_even(const A* from, A* to, int64_t count) {
  constexpr int64_t n = kLanes<A>;
  for (int64_t i = 0; i + 1 < count; i += n) {
    const int64_t at = imin(i, count - 1 - n);
    store(to + at, deinterleave(load(from + 2 * at), load(from + 2 * at + n)).first);
  }
  to[count - 1] = from[2 * (count - 1)];
}

// to[i] = from[i · step], in the accumulation type, or, of 16 bits each, as they are.
template <typename T>
inline void copy_row(const T* from, int64_t step, Acc<T>* to, int64_t count) {
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Acc<T>>) {
    if (step == 1) return copy_elements(from, to, count);
    if (step == 2 && count > kLanes<T>) return copy_even(from, to, count);
  }
  if (step == 1)
    for (; i + kLanes<Acc<T>> <= count; i += kLanes<Acc<T>>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = to_acc(from[i * step]);
}
// Every second element, by vectors of n; the element after the last need not exist, so that the last of all
// is copied alone, and the vector before it overlaps the one before.
template <int n>
inline void copy_even(const BFloat16* from, BFloat16* to, int64_t count) {
  for (int64_t i = 0; i + 1 < count; i += n) {
    const int64_t at = imin(i, count - 1 - n);
    const auto even = __builtin_convertvector(load_bits<typename VectorOf<uint32_t, n>::type>(from + 2 * at),
                                              typename VectorOf<uint16_t, n>::type);
    std::memcpy(static_cast<void*>(to + at), &even, sizeof even);
  }
  to[count - 1] = from[2 * (count - 1)];
}
inline void copy_row(const BFloat16* from, int64_t step, BFloat16* to, int64_t count) {
  if (step == 1) return copy_elements(from, to, count);
  if (step == 2 && count > 16) return copy_even<16>(from, to, count);
  if (step == 2 && count > 4) return copy_even<4>(from, to, count);
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
}
// Mostly a few elements of padding, for which a call of memset, as compilers make of a loop, takes too long.
template <typename A>
inline void zero_row(A* to, int64_t count) {
  constexpr int size = static_cast<int>(sizeof(A));
  static constexpr A zeros[16] = {};
  for (; count >= 16; count -= 16, to += 16) std::memcpy(static_cast<void*>(to), zeros, sizeof zeros);
  if (count >= 8) return copy_vectors<8 * size>(zeros, to, count);
  if (count >= 4) return copy_vectors<4 * size>(zeros, to, count);
  for (int64_t i = 0; i < count; ++i) to[i] = A{};
}

// to[i · step] = from[i], rounded.
template <typename T>
inline void write_row(const Acc<T>* from, T* to, int64_t step, int64_t count) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (count < L) {
    for (int64_t i = 0; i < count; ++i) to[i * step] = from_acc<T>(from[i]);
    return;
  }
  for (int64_t i = 0; i < count; i += L) {
    const int64_t at = imin(i, count - L);  // the last may overlap the one before
    if (step == 1) {
      store(to + at, load(from + at));
    } else {
      T rounded[L];
      store(rounded, load(from + at));
      for (int64_t j = 0; j < L; ++j) to[(at + j) * step] = rounded[j];
    }
  }
}

// A stretch of positions of one grid row: columns [column, column + count) of a tile are the grid
// positions w, w + 1, … of the grid row (d, h).
struct Run {
  int64_t column, count, d, h, w;
};
template <typename F>
void for_each_run(const TapAxes& a, int64_t begin, int64_t end, F f) {
  int64_t w = begin % a.w.grid, h = begin / a.w.grid % a.h.grid, d = begin / a.w.grid / a.h.grid;
  for (int64_t at = begin; at < end;) {
    const int64_t count = imin(a.w.grid - w, end - at);
    f(Run{at - begin, count, d, h, w});
    at += count;
    w = 0;
    if (++h == a.h.grid) h = 0, ++d;
  }
}

// The same for positions counted over all images: f(image, run).
template <typename F>
void for_each_image_run(const TapAxes& a, int64_t begin, int64_t end, F f) {
  const int64_t grid = grid_size(a);
  for (int64_t at = begin; at < end;) {
    const int64_t n = at / grid, first = at % grid, count = imin(grid - first, end - at);
    for_each_run(a, first, first + count, [&](Run run) {
      run.column += at - begin;
      f(n, run);
    });
    at += count;
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
