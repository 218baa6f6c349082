// What the tensor-core convolutions share: the problem in 32 bits, and where its elements lie.
#pragma once

#include "conv_families.h"
#include "tensor_tiles.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// geometry.h's TapAxis in 32 bits; conv_kernel_serves sees to it that they suffice.
struct GemmAxis {
  int source, grid, out0, out_step, step, taps, tap0, tap_step, off0, off_step;
  Divider<int32_t> by_grid{1};

  GemmAxis() = default;
  explicit GemmAxis(const TapAxis& a)
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

// Strides of a dense tensor, in elements.
struct Strides {
  int64_t n, c, h, w;
  Strides(int64_t channels, const Extent& size, bool channels_last)
      : n(channels * volume(size)),
        c(channels_last ? 1 : volume(size)),
        h(channels_last ? size.w * channels : size.w),
        w(channels_last ? channels : 1) {}
};

// An image and a place in its grid of pixels.
struct Pixel {
  int n, h, w;
};

// Pixels of a grid, in raster order of all images, counted from a block's first one: 64 bits are needed
// to say which that is, 32 from there.
struct PixelRun {
  int64_t image;  // of the first pixel
  int first;      // in that image
  int left;       // pixels from there to the last image's end, if less than `most`
  __device__ PixelRun(int64_t start, int64_t images, int area, int most) {
    image = start / area;
    first = static_cast<int>(start - image * area);
    const int64_t all = images * area - start;
    left = static_cast<int>(all < most ? all : most);
  }
  __device__ Pixel at(int i, const GemmAxis& h, const GemmAxis& w) const {
    const int index = first + i, row = w.by_grid(index), n = h.by_grid(row);
    return {n, row - n * h.grid, index - row * w.grid};
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
