// Where the elements of a convolution lie, for all families of kernels: strides of tensors, and the axes of
// its sum over taps in 32 bits.
#pragma once

#include "../conv.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// Strides of a dense tensor (n, channels, h, w), in elements.
struct Strides {
  int64_t n, c, h, w;
  Strides(bool channels_last, int64_t channels, const Extent& e)
      : n(channels * volume(e)),
        c(channels_last ? 1 : volume(e)),
        h(channels_last ? e.w * channels : e.w),
        w(channels_last ? channels : 1) {}
};

// geometry.h's TapAxis in 32 bits; conv_kernel_serves sees to it that they suffice.
struct NarrowTapAxis {
  int source = 0, grid = 0, out0 = 0, out_step = 1, step = 1, taps = 0, tap0 = 0, tap_step = 1, off0 = 0,
      off_step = 1;
  Divider<int32_t> by_grid{1};

  NarrowTapAxis() = default;
  explicit NarrowTapAxis(const TapAxis& a)
      : source(static_cast<int>(a.source)),
        grid(static_cast<int>(a.grid)),
        out0(static_cast<int>(a.out0)),
        out_step(static_cast<int>(a.out_step)),
        step(static_cast<int>(a.step)),
        taps(static_cast<int>(a.taps)),
        tap0(static_cast<int>(a.tap0)),
        tap_step(static_cast<int>(a.tap_step)),
        off0(static_cast<int>(a.off0)),
        off_step(static_cast<int>(a.off_step)),
        by_grid(a.grid) {}
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
