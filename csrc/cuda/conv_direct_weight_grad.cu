// The weight gradient of a convolution for anything: any shape, stride, dilation, groups, dtype and layout.
//
//   dw[k][tap][c] = Σ over n and the pixels of dy of dy[pixel][k] · x[where the tap of the pixel lies][c]
//
// A block computes a tile of columns (tap, c) × output channels k of a group, over its part of the pixels.
#include "conv_families.h"
#include "tiles.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// For groups of few channels: 64 columns × 8.
using SmallTile = Tile<64, 8, 4, 1>;

struct Problem {
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, kernel_w;
  int x_h, x_w, y_h, y_w;
  Divider<int32_t> by_y_h, by_y_w;
  Strides x, dy;
  int groups, channels, columns, rows;  // in a group: channels of x, columns, channels of dy
  int column_tiles, row_tiles;
  int64_t pixels, share;  // share: of a split
  bool channels_last;

  Problem(const ConvParams& p, int64_t splits, int64_t depth)
      : stride_h(static_cast<int>(p.stride.h)),
        stride_w(static_cast<int>(p.stride.w)),
        pad_h(static_cast<int>(p.pad.h)),
        pad_w(static_cast<int>(p.pad.w)),
        dilation_h(static_cast<int>(p.dilation.h)),
        dilation_w(static_cast<int>(p.dilation.w)),
        kernel_w(static_cast<int>(p.kernel.w)),
        x_h(static_cast<int>(p.in.h)),
        x_w(static_cast<int>(p.in.w)),
        y_h(static_cast<int>(p.out.h)),
        y_w(static_cast<int>(p.out.w)),
        by_y_h(p.out.h),
        by_y_w(p.out.w),
        x(p.channels_last, p.c, p.in),
        dy(p.channels_last, p.k, p.out),
        groups(static_cast<int>(p.groups)),
        channels(static_cast<int>(p.c / p.groups)),
        columns(static_cast<int>(p.c / p.groups * conv_taps(p))),
        rows(static_cast<int>(p.k / p.groups)),
        column_tiles(1),
        row_tiles(1),
        pixels(p.n * volume(p.out)),
        share(round_up(ceil_div(pixels, splits), depth)),
        channels_last(p.channels_last) {}
};

// Where a pixel's first tap is in x, with its coordinates; and the pixel itself in dy.
struct Pixel {
  int64_t x, dy;
  int h, w;
};
// What a column adds to them.
struct Column {
  int64_t x;
  int h, w;
};

// The pixels of a split, counted from its first one: 32 bits suffice for what they are away from it.
struct PixelsFrom {
  int64_t image;
  int row, column, count;

  static __device__ PixelsFrom first_of(const Problem& p, int64_t first) {
    const int64_t row = first / p.y_w, image = row / p.y_h;
    return {image, static_cast<int>(row - image * p.y_h), static_cast<int>(first - row * p.y_w),
            static_cast<int>(imax(0, imin(p.share, p.pixels - first)))};
  }
  __device__ Pixel at(const Problem& p, int i) const {
    if (i >= count) return {0, 0, kNowhere, kNowhere};
    const int rows = p.by_y_w(column + i), w = column + i - rows * p.y_w;
    const int images = p.by_y_h(row + rows), h = row + rows - images * p.y_h;
    const int x_h = h * p.stride_h - p.pad_h, x_w = w * p.stride_w - p.pad_w;
    const int64_t n = image + images;
    return {n * p.x.n + x_h * p.x.h + x_w * p.x.w, n * p.dy.n + h * p.dy.h + w * p.dy.w, x_h, x_w};
  }
};

__device__ inline Column column_at(const Problem& p, int group, int index) {
  if (index >= p.columns) return {0, kNowhere, kNowhere};
  const int tap = index / p.channels, channel = index - tap * p.channels;
  const int row = tap / p.kernel_w, h = row * p.dilation_h, w = (tap - row * p.kernel_w) * p.dilation_w;
  return {(int64_t{group} * p.channels + channel) * p.x.c + h * p.x.h + w * p.x.w, h, w};
}

template <typename T, int width, typename Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::resident)
    direct_weight_grad_kernel(Problem p, const T* x, const T* dy, Acc<T>* partials, Acc<T>* bias_partials) {
  using A = Acc<T>;
  constexpr int M = Tile::m, N = Tile::n, D = kDepth<A>;
  using Memory = Operands<A, Tile>;
  FASTOPS_SHARED(memory, Memory);
  FASTOPS_SHARED(columns, Column[M]);
  FASTOPS_SHARED(pixels, Pixel[2][D]);
  FASTOPS_SHARED(part, PixelsFrom);
  FASTOPS_SHARED(rows, int64_t[N]);  // places in dy; negative: there is none
  const int t = threadIdx.x;
  const unsigned tiles = static_cast<unsigned>(p.column_tiles * p.row_tiles * p.groups);
  const unsigned split = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x - split * tiles), row_tile = tile / p.column_tiles;
  const int group = row_tile / p.row_tiles, first_column = (tile - row_tile * p.column_tiles) * M;
  const int first_row = (row_tile - group * p.row_tiles) * N;
  if (t < N) rows[t] = first_row + t < p.rows ? (int64_t{group} * p.rows + first_row + t) * p.dy.c : -1;
  if (t < M) columns[t] = column_at(p, group, first_column + t);
  if (t == 0) part = PixelsFrom::first_of(p, split * p.share);
  __syncthreads();
  if (t < D) pixels[0][t] = part.at(p, t);
  __syncthreads();

  Products<A, Tile> sums;
  ExactSum<A> bias_sum;
  const bool with_bias = bias_partials != nullptr && first_column == 0 && t < N;
  Pack<T, width> of_x[kPacks<Tile, M, D, width>];
  Pack<T, width> of_dy[kPacks<Tile, N, D, width>];
  const bool along = width > 1 || p.channels_last;
  const auto bring = [&](const Pixel(&step)[D]) {
    for_packs<Tile, M, D, width>(along, [&](int i, int d, int m) {
      const Pixel pixel = step[d];
      const Column column = columns[m];
      const bool exists = within(pixel.h + column.h, p.x_h) && within(pixel.w + column.w, p.x_w);
      of_x[i] = fetch<T, width>(x + (pixel.x + column.x), exists);
    });
    for_packs<Tile, N, D, width>(along, [&](int i, int d, int n) {
      const int64_t row_place = rows[n];
      const bool exists = step[d].h != kNowhere && row_place >= 0;
      of_dy[i] = fetch<T, width>(dy + (step[d].dy + row_place), exists);
    });
  };
  const auto put = [&](int buffer) {
    for_packs<Tile, M, D, width>(along, [&](int i, int d, int m) {
#pragma unroll
      for (int u = 0; u < width; ++u) memory.m[buffer][d][m + u] = to_acc(of_x[i].v[u]);
    });
    for_packs<Tile, N, D, width>(along, [&](int i, int d, int n) {
#pragma unroll
      for (int u = 0; u < width; ++u) memory.n[buffer][d][n + u] = to_acc(of_dy[i].v[u]);
    });
  };
  // In step s the tiles s are multiplied, those of s + 1 arrive, and the pixels of s + 2 are found.
  const int steps = (part.count + D - 1) / D;
  if (steps > 0) {
    bring(pixels[0]);
    put(0);
    if (t < D) pixels[1][t] = part.at(p, D + t);
  }
  __syncthreads();
  for (int s = 0; s < steps; ++s) {
    const int now = s % 2, next = 1 - now;
    if (s + 1 < steps) bring(pixels[next]);
    sums.add(memory.m[now], memory.n[now]);
    if (with_bias) {
#pragma unroll
      for (int d = 0; d < D; ++d) bias_sum.add(memory.n[now][d][t]);
    }
    if (t < D) pixels[now][t] = part.at(p, (s + 2) * D + t);
    if (s + 1 < steps) put(next);
    __syncthreads();
  }

  const int64_t row = (int64_t{split} * p.groups + group) * p.rows + first_row;
#pragma unroll
  for (int j = 0; j < Tile::each_n; ++j)
#pragma unroll
    for (int i = 0; i < Tile::each_m; ++i) {
      const int n = sums.n_of(j), column = first_column + sums.m_of(i);
      if (first_row + n < p.rows && column < p.columns)
        partials[(row + n) * p.columns + column] = sums.v[i][j];
    }
  if (with_bias && first_row + t < p.rows) bias_partials[row + t] = bias_sum.total();
}

}  // namespace

void direct_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        void* partials, bool with_bias, void* stream) {
  check_extents(p);
  void* const bias_partials = WeightPartials(p, plan.splits).bias_part(partials, with_bias);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    constexpr int width = 16 / sizeof(T);
    Problem problem(p, plan.splits, kDepth<A>);
    const auto start = [&](auto tile, auto constant) {
      using Tile = decltype(tile);
      problem.column_tiles = static_cast<int>(ceil_div(problem.columns, Tile::m));
      problem.row_tiles = static_cast<int>(ceil_div(problem.rows, Tile::n));
      const int64_t tiles = int64_t{problem.column_tiles} * problem.row_tiles * problem.groups;
      launch("conv_weight_grad", direct_weight_grad_kernel<T, decltype(constant)::value, Tile>,
             static_cast<unsigned>(tiles * plan.splits), Tile::threads, 0, stream, problem,
             static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<A*>(partials),
             static_cast<A*>(bias_partials));
    };
    const bool vectors = p.channels_last && vectors_fit(problem.channels, sizeof(T), address(x)) &&
                         vectors_fit(problem.rows, sizeof(T), address(dy));
    if (problem.rows <= SmallTile::n)
      start(SmallTile(), Width<1>());
    else if (vectors)
      start(LargeTile<T>(), Width<width>());
    else
      start(LargeTile<T>(), Width<1>());
  });
}

}  // namespace cuda
}  // namespace fastops
