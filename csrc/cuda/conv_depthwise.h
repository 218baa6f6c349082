// What the depthwise kernels share: the problem in 32 bits, and where a thread's run is.
#pragma once

#include "../depthwise_shape.h"
#include "conv_families.h"
#include "tiles.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kMostPhases = 4;  // of a stride, per axis (depthwise_serves)

template <int width>
constexpr int kMostLanes = kDepthwiseChannels / width < 32 ? kDepthwiseChannels / width : 32;
// How far apart the weights of taps are in shared memory, so that storing them spreads over the banks.
constexpr int kDepthwisePitch = kDepthwiseChannels + 4;

template <typename T, int step>
constexpr int kRun = depthwise_run(sizeof(Acc<T>), step);

// Turned round where its offsets go down: off_step > 0. And the runs that its grid is cut into.
struct DepthwiseAxis : NarrowTapAxis {
  int runs = 0;
  Divider<int32_t> by_runs{1}, by_taps{1};

  DepthwiseAxis() = default;
  DepthwiseAxis(const TapAxis& a, int64_t run)
      : NarrowTapAxis(a),
        runs(static_cast<int>(ceil_div(a.grid, run))),
        by_runs(ceil_div(a.grid, run)),
        by_taps(a.taps) {
    if (off_step < 0) {
      const int last = taps > 0 ? taps - 1 : 0;
      tap0 += last * tap_step;
      tap_step = -tap_step;
      off0 += last * off_step;
      off_step = -off_step;
    }
  }
};

// "source" is what is read with the weights, x, or dy in the input gradient; "result" the other one. The runs
// go along one axis, and the other is across.
struct DepthwiseArgs {
  DepthwiseAxis along[kMostPhases], across[kMostPhases];
  int phases_along = 1, phases_across = 1;
  int64_t n;
  int channels, multiplier;  // channels: of the result; multiplier: channels of y for one of x
  int terms;                 // source channels that a result's channel is the sum of
  int channel_tiles = 1, lanes = 1;
  int reps = 1;  // times that a block takes runs
  Divider<int32_t> by_channels, by_multiplier;
  int64_t source_n, source_c, source_across;
  int64_t result_n, result_c, result_across;
  int source_along, result_along;
  int taps, tap_along, tap_across;  // of a filter; how far they are apart in it
  bool input_grad, relu;

  DepthwiseArgs(const ConvParams& p, bool gradient, int64_t run)
      : n(p.n),
        channels(static_cast<int>(gradient ? p.c : p.k)),
        multiplier(static_cast<int>(depthwise_multiplier(p))),
        terms(gradient ? multiplier : 1),
        by_channels(channels),
        by_multiplier(multiplier),
        taps(static_cast<int>(conv_taps(p))),
        tap_along(p.channels_last ? 1 : static_cast<int>(p.kernel.w)),
        tap_across(p.channels_last ? static_cast<int>(p.kernel.w) : 1),
        input_grad(gradient),
        relu(p.relu && !gradient) {
    const Strides source(p.channels_last, gradient ? p.k : p.c, gradient ? p.out : p.in);
    const Strides result(p.channels_last, gradient ? p.c : p.k, gradient ? p.in : p.out);
    source_n = source.n, source_c = source.c, result_n = result.n, result_c = result.c;
    source_along = static_cast<int>(p.channels_last ? source.w : source.h);
    source_across = p.channels_last ? source.h : source.w;
    result_along = static_cast<int>(p.channels_last ? result.w : result.h);
    result_across = p.channels_last ? result.h : result.w;
    const auto fill = [&](DepthwiseAxis(&axes)[kMostPhases], int64_t in, int64_t out, int64_t kernel,
                          int64_t stride, int64_t pad, int64_t dilation) {
      const int phases = static_cast<int>(gradient ? imin(stride, in) : 1);
      for (int i = 0; i < phases; ++i)
        axes[i] = DepthwiseAxis(gradient ? input_grad_taps(in, out, kernel, stride, pad, dilation, i)
                                         : forward_taps(in, out, kernel, stride, pad, dilation),
                                run);
      return phases;
    };
    auto& of_h = p.channels_last ? across : along;
    auto& of_w = p.channels_last ? along : across;
    const int phases_h = fill(of_h, p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h);
    const int phases_w = fill(of_w, p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w);
    phases_along = p.channels_last ? phases_w : phases_h;
    phases_across = p.channels_last ? phases_h : phases_w;
  }
};

// index = outer · size + inner.
struct Parts {
  int64_t outer;
  int inner;
};
__device__ inline Parts part(int64_t index, int size, const Divider<int32_t>& by) {
  if (index < int64_t{1} << 31) {
    const int i = static_cast<int>(index), outer = by(i);
    return {outer, i - outer * size};
  }
  const int64_t outer = index / size;
  return {outer, static_cast<int>(index - outer * size)};
}

// Where a run is: of which image, or plane; where its first result is along, in the grid, and across.
struct RunPlace {
  int64_t image;
  int along, across;
};
// The runs are numbered as they lie in memory.
template <bool planes, int run>
__device__ inline RunPlace run_at(const DepthwiseAxis& along, const DepthwiseAxis& across, int64_t index) {
  if constexpr (planes) {
    const Parts column = part(index, across.grid, across.by_grid);
    const Parts row = part(column.outer, along.runs, along.by_runs);
    return {row.outer, row.inner * run, column.inner};
  } else {
    const Parts column = part(index, along.runs, along.by_runs);
    const Parts row = part(column.outer, across.grid, across.by_grid);
    return {row.outer, column.inner * run, row.inner};
  }
}

// `width` neighbouring elements in the accumulation type; zeros where there are none.
template <typename T, int width>
__device__ __forceinline__ void load(Acc<T> (&to)[width], const T* from, bool exists) {
  const Pack<T, width> pack = fetch<T, width>(from, exists);
#pragma unroll
  for (int u = 0; u < width; ++u) to[u] = to_acc(pack.v[u]);
}

// The i-th element along a line.
template <typename T>
__device__ __forceinline__ T* along_line(T* line, int i, int stride) {
  return line + int64_t{i} * stride;
}

// Calls f(step) with a constant.
template <typename F>
void dispatch_step(int step, F f) {
  if (step == 1)
    f(Width<1>());
  else if (step == 2)
    f(Width<2>());
  else
    f(Width<0>());
}

// Calls f(width, planes) with constants: the channels of a thread, and the layout.
template <typename T, typename F>
void dispatch_depthwise(const ConvParams& p, uintptr_t addresses, F f) {
  if (!p.channels_last)
    f(Width<1>(), std::true_type());
  else if (depthwise_vectors(p) && addresses % 16 == 0)
    f(Width<depthwise_width(sizeof(T))>(), std::false_type());
  else
    f(Width<1>(), std::false_type());
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
