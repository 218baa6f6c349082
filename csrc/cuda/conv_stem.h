// What the stem kernels share: the problem in 32 bits, the tiles of a block, and the patch of x under a tile.
#pragma once

#include "../conv_stem.h"
#include "conv_families.h"
#include "launch.h"
#include "tensor_tiles.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

struct StemArgs {
  int c, k, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, x_h, x_w, y_h, y_w;
  int tile_rows, tiles_h, tiles_w;
  int64_t tiles, workers;                                  // of all images; blocks that share them
  int patch_rows, patch_columns, pitch, second, elements;  // second: where the second copy is, or 0
  int to_right, to_below;  // elements of the patch from a pixel's to its neighbour's
  // x by lines that memory has in one piece: a row of a channel or, in channels_last, of all of them.
  int lines, line_length;  // in a row of the patch; of the patch's columns
  int line_unit, step;     // elements of a column of x, in a line; between elements of a line in the patch
  int x_row, x_channel;
  int64_t x_image;
  bool channels_last;
  Divider<int32_t> by_length, by_lines;

  StemArgs(const ConvParams& p, const StemPatch& patch, int64_t rows, int64_t of_workers)
      : c(static_cast<int>(p.c)),
        k(static_cast<int>(p.k)),
        kernel_h(static_cast<int>(p.kernel.h)),
        kernel_w(static_cast<int>(p.kernel.w)),
        stride_h(static_cast<int>(p.stride.h)),
        stride_w(static_cast<int>(p.stride.w)),
        pad_h(static_cast<int>(p.pad.h)),
        pad_w(static_cast<int>(p.pad.w)),
        x_h(static_cast<int>(p.in.h)),
        x_w(static_cast<int>(p.in.w)),
        y_h(static_cast<int>(p.out.h)),
        y_w(static_cast<int>(p.out.w)),
        tile_rows(static_cast<int>(rows)),
        tiles_h(static_cast<int>(ceil_div(p.out.h, rows))),
        tiles_w(static_cast<int>(ceil_div(p.out.w, kStemColumns))),
        tiles(p.n * tiles_h * tiles_w),
        workers(of_workers),
        patch_rows(static_cast<int>(patch.rows)),
        patch_columns(static_cast<int>(patch.columns)),
        pitch(static_cast<int>(patch.pitch)),
        second(static_cast<int>(patch.second)),
        elements(static_cast<int>(patch.elements)),
        to_right(stride_w * c),
        to_below(stride_h * pitch),
        lines(p.channels_last ? 1 : c),
        line_length(patch_columns * (p.channels_last ? c : 1)),
        line_unit(p.channels_last ? c : 1),
        step(p.channels_last ? 1 : c),
        x_row(x_w * line_unit),
        x_channel(p.channels_last ? 1 : x_h * x_w),
        x_image(p.c * volume(p.in)),
        channels_last(p.channels_last),
        by_length(line_length),
        by_lines(lines) {}
};

// A tile: an image, and its first pixel.
struct StemPlace {
  int n, p, q;
  __device__ StemPlace(const StemArgs& a, int64_t tile) {
    const int64_t row = tile / a.tiles_w;
    n = static_cast<int>(row / a.tiles_h);
    p = static_cast<int>(row - int64_t{n} * a.tiles_h) * a.tile_rows;
    q = static_cast<int>(tile - row * a.tiles_w) * kStemColumns;
  }
  __device__ void advance(const StemArgs& a) {
    q += kStemColumns;
    if (q >= a.y_w) q = 0, p += a.tile_rows;
    if (p >= a.y_h) p = 0, ++n;
  }
};

// Brings the patch under a tile; the next barrier completes it. kBatch elements of a thread are on their way
// at a time.
template <typename T, int threads, int kBatch>
__device__ void load_patch(T* patch, const T* x, const StemArgs& a, const StemPlace& at) {
  const int h0 = at.p * a.stride_h - a.pad_h, w0 = at.q * a.stride_w - a.pad_w;
  const int begin = w0 < 0 ? -w0 : 0, end = a.x_w - w0 < a.patch_columns ? a.x_w - w0 : a.patch_columns;
  const int from = begin * a.line_unit, count = end > begin ? (end - begin) * a.line_unit : 0;
  const int64_t base = at.n * a.x_image + int64_t{h0} * a.x_row + int64_t{w0} * a.line_unit;
  const int items = a.patch_rows * a.lines * a.line_length;
  for (int first = static_cast<int>(threadIdx.x); first < items; first += threads * kBatch) {
    T kept[kBatch];
    int to[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int item = first + i * threads, line = a.by_length(item), j = item - line * a.line_length;
      const int row = a.by_lines(line), channel = line - row * a.lines;
      const bool exists = item < items && static_cast<unsigned>(h0 + row) < static_cast<unsigned>(a.x_h) &&
                          static_cast<unsigned>(j - from) < static_cast<unsigned>(count);
      kept[i] = exists ? x[base + row * a.x_row + channel * a.x_channel + j] : from_acc<T>(0);
      to[i] = item < items ? row * a.pitch + j * a.step + channel : -1;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (to[i] >= 0) {
        patch[to[i]] = kept[i];
        if (a.second) patch[a.second + 1 + to[i]] = kept[i];
      }
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
