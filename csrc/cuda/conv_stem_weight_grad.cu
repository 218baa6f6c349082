// The weight gradient of a convolution of few channels, on tensor cores.
//
//   dw[k][(r, s, c)] = Σ over the pixels of dy[pixel][k] · x[the pixel's place + that of (r, s, c)]
//
// A block goes once over the tiles of its part of the pixels, and keeps the sums of 64 channels k and up to
// 160 columns (r, s, c) in registers: those of 7×7×3 are all of them, so that dy is read once. Two stages:
// the next tile's dy arrives by asynchronous copies, and its patch of x is brought, while the warps multiply.
#include "conv_stem.h"

namespace fastops {
namespace cuda {
namespace {

struct StemGradArgs {
  StemArgs of;
  int dy_bytes, stage_bytes;
  int row_tiles, column_tiles, columns;  // columns: r · s · c
  bool vectors;
};

// A warp has 64 channels × 32 columns. If there are fewer columns than for four warps, several groups of
// warps share a tile's pixels instead, and add up at the end.
template <int groups, int warps>
struct GradShape : Shape<1, warps, 4, 4> {
  static constexpr int kGroups = groups, kThreadsOf = 32 * groups * warps;
};

constexpr int kSteps = 4;  // of a tile: 64 bytes of pixels each
template <typename T>
constexpr int kTileRows = kSteps * kStep<T> / kStemColumns;

// dy's tile, as memory has it: pixels inside or, in channels_last, channels.
template <typename T, bool channels_last>
using DyTile = std::conditional_t<channels_last, RowMajorTile<T, 64>, KMajorTile<T, 64>>;
// Neighbours inside: channels or pixels; and where one of them is.
template <typename T, bool channels_last>
__device__ T* dy_place(unsigned char* tile, int k, int m) {
  const DyTile<T, channels_last> step{tile + m / kStep<T> * DyTile<T, channels_last>::kBytes};
  if constexpr (channels_last)
    return step.at(k, m % kStep<T>);
  else
    return step.chunk(k, m % kStep<T> / kElements<T>) + m % kElements<T>;
}

// Brings a tile of dy: zeros for channels and pixels that are not there.
template <typename T, bool channels_last, int threads>
__device__ void load_dy(unsigned char* tile, const T* dy, const StemGradArgs& a, const StemPlace& at,
                        int k0) {
  constexpr int kPixels = kTileRows<T> * kStemColumns, kRun = channels_last ? 64 : kPixels;
  const int64_t area = int64_t{a.of.y_h} * a.of.y_w, image = at.n * a.of.k * area;
  const auto source = [&](int k, int m, bool& exists) {
    const int p = at.p + m / kStemColumns, q = at.q + m % kStemColumns;
    exists = k0 + k < a.of.k && p < a.of.y_h && q < a.of.y_w;
    const int64_t pixel = int64_t{p} * a.of.y_w + q;
    return exists ? image + (channels_last ? pixel * a.of.k + k0 + k : (k0 + k) * area + pixel) : 0;
  };
  if (a.vectors) {
    constexpr int e = kElements<T>, per_run = kRun / e;
    for (int i = static_cast<int>(threadIdx.x); i < 64 * kPixels / e; i += threads) {
      const int outer = i / per_run, inner = i % per_run * e;
      const int k = channels_last ? inner : outer, m = channels_last ? outer : inner;
      bool exists;
      const int64_t from = source(k, m, exists);
      copy_async_16(dy_place<T, channels_last>(tile, k, m), dy + from, exists);
    }
  } else {
    constexpr int kBatch = 8;
    for (int first = static_cast<int>(threadIdx.x); first < 64 * kPixels; first += threads * kBatch) {
      T kept[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + b * threads, outer = i / kRun, inner = i % kRun;
        bool exists;
        const int64_t from = source(channels_last ? inner : outer, channels_last ? outer : inner, exists);
        kept[b] = exists && i < 64 * kPixels ? dy[from] : from_acc<T>(0);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + b * threads, outer = i / kRun, inner = i % kRun;
        if (i < 64 * kPixels)
          *dy_place<T, channels_last>(tile, channels_last ? inner : outer, channels_last ? outer : inner) =
              kept[b];
      }
    }
  }
}

// Columns of the product: x's elements, found as a pixel's place plus that of (r, s, c). A register of b has
// two neighbouring pixels of one column, or one in fp32. Lanes of a warp read some 20 words in a row.
template <typename T, typename S>
struct PatchColumns {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  const Bits* patch;
  int column0;            // of the warp
  int offset[S::kN];      // of this lane's columns
  int apart, row_apart;   // elements between pixels, and between rows of them
  int first_row;          // of the step
  int rows, pixels_left;  // that exist: of the tile, and in a row

  __device__ void set_columns(const StemGradArgs& a, int first_column, int lane) {
    const int row_length = a.of.kernel_w * a.of.c;
#pragma unroll
    for (int j = 0; j < S::kN; ++j) {
      const int column = first_column + column0 + 8 * j + lane / 4, r = column / row_length;
      offset[j] = column < a.columns ? r * a.of.pitch + column - r * row_length : 0;
    }
  }
  // What is under a pixel that y has not may be anything, NaN too; it must not meet dy's zero.
  __device__ uint32_t element(int row, int pixel, int column_offset) const {
    const uint32_t v = patch[row * row_apart + pixel * apart + column_offset];
    return row < rows && pixel < pixels_left ? v : 0;
  }
  __device__ void load_b(uint32_t (&b)[2][2], int first, int step, int lane) const {
    const int j = (first - column0) / 8;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (sizeof(T) == 2) {
          const int row = first_row + step, pixel = lane % 4 * 2 + 8 * r;
          b[half][r] =
              element(row, pixel, offset[j + half]) | element(row, pixel + 1, offset[j + half]) << 16;
        } else {
          b[half][r] = element(first_row, step * 8 + r * 4 + lane % 4, offset[j + half]);
        }
      }
  }
};

template <typename P, typename S, bool channels_last>
__global__ void __launch_bounds__(S::kThreadsOf, 512 / S::kThreadsOf)
    stem_weight_grad_kernel(const __grid_constant__ StemGradArgs a, const typename P::T* dy,
                            const typename P::T* x, float* partials, float* bias_partials) {
  using T = typename P::T;
  using Tile = DyTile<T, channels_last>;
  constexpr int kStepRows = kTileRows<T> / kSteps;  // of the tile, that a step has
  constexpr int kEach = kSteps / S::kGroups;        // steps of a group of warps
  unsigned char* const shared = dynamic_shared<unsigned char>();
  const int warp = static_cast<int>(threadIdx.x) / 32, group = warp / S::kWarpsN;

  int64_t block = blockIdx.x;
  const int k0 = static_cast<int>(block % a.row_tiles) * 64;
  block /= a.row_tiles;
  const int first_column = static_cast<int>(block % a.column_tiles) * S::kColumns;
  const int64_t part = block / a.column_tiles;
  const int64_t from = part * a.of.tiles / a.of.workers, to = (part + 1) * a.of.tiles / a.of.workers;

  const auto dy_tile = [&](int stage) { return shared + stage * a.stage_bytes; };
  const auto patch = [&](int stage) {
    return reinterpret_cast<T*>(shared + stage * a.stage_bytes + a.dy_bytes);
  };
  StemPlace next(a.of, from);
  const auto load = [&](int stage) {
    load_dy<T, channels_last, S::kThreadsOf>(dy_tile(stage), dy, a, next, k0);
    commit_copies();
    load_patch<T, S::kThreadsOf>(patch(stage), x, a.of, next);
  };

  Sums<P, S> sums;
  sums.row0 = 0;
  float ones[S::kM][4] = {};
  const bool with_bias = bias_partials && first_column == 0 && sums.column0 == 0;
  PatchColumns<T, S> columns;
  columns.column0 = sums.column0;
  columns.apart = a.of.stride_w * a.of.c;
  columns.row_apart = a.of.stride_h * a.of.pitch;
  columns.set_columns(a, first_column, sums.lane);

  if (from < to) load(0);
  int stage = 0;
  for (int64_t tile = from; tile < to; ++tile, stage ^= 1) {
    columns.rows = a.of.y_h - next.p;
    columns.pixels_left = a.of.y_w - next.q;
    wait_for_copies<0>();
    __syncthreads();  // this tile is there; all have done with the one before
    next.advance(a.of);
    if (tile + 1 < to) load(stage ^ 1);
    columns.patch = reinterpret_cast<const typename PatchColumns<T, S>::Bits*>(patch(stage));
#pragma unroll 1
    for (int i = 0; i < kEach; ++i) {
      const int step = group * kEach + i;
      columns.first_row = step * kStepRows;
      const Tile rows{dy_tile(stage) + step * Tile::kBytes};
      sums.add(rows, columns);
      if (with_bias) sums.add_rows(ones, rows);
    }
  }

  // The groups' sums, in their order, then those for the bias.
  if constexpr (S::kGroups > 1) {
    constexpr int kOfGroup = 64 * S::kColumns, kOfAll = (S::kGroups - 1) * kOfGroup;
    float* const others = reinterpret_cast<float*>(shared);
    __syncthreads();
    if (group > 0) {
      float* const mine = others + (group - 1) * kOfGroup;
      sums.for_each_pair([&](int row, int column, float first, float second) {
        *reinterpret_cast<Pack<float, 2>*>(mine + row * S::kColumns + column) = {{first, second}};
      });
      if (with_bias && sums.lane % 4 == 0)
#pragma unroll
        for (int i = 0; i < 2 * S::kM; ++i)
          others[kOfAll + (group - 1) * 64 + 8 * i + sums.lane / 4] = ones[i / 2][i % 2 * 2];
    }
    __syncthreads();
    if (group > 0) return;
#pragma unroll
    for (int g = 0; g < S::kGroups - 1; ++g) {
      const float* const theirs = others + g * kOfGroup;
#pragma unroll
      for (int i = 0; i < S::kM; ++i) {
#pragma unroll
        for (int j = 0; j < S::kN; ++j)
#pragma unroll
          for (int r = 0; r < 4; ++r)
            sums.d[i][j][r] += theirs[(16 * i + r / 2 * 8 + sums.lane / 4) * S::kColumns + sums.column0 +
                                      8 * j + sums.lane % 4 * 2 + r % 2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (with_bias) ones[i][2 * half] += others[kOfAll + g * 64 + 16 * i + 8 * half + sums.lane / 4];
      }
    }
  }
  partials += (part * a.of.k + k0) * a.columns;
  sums.for_each_pair([&](int row, int column, float first, float second) {
    column += first_column;
    if (k0 + row >= a.of.k) return;
    if (column < a.columns) partials[row * a.columns + column] = first;
    if (column + 1 < a.columns) partials[row * a.columns + column + 1] = second;
  });
  if (with_bias && sums.lane % 4 == 0)
#pragma unroll
    for (int i = 0; i < 2 * S::kM; ++i) {
      const int row = k0 + 8 * i + sums.lane / 4;
      if (row < a.of.k) bias_partials[part * a.of.k + row] = ones[i / 2][i % 2 * 2];
    }
}

}  // namespace

void stem_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                      void* partials, bool with_bias, void* stream) {
  const StemGrad of(p);
  const int64_t rows = stem_grad_rows(p), e = 16 / element_bytes(p.dtype), columns = conv_taps(p) * p.c;
  const int64_t row_tiles = ceil_div(p.k, 64), column_tiles = ceil_div(columns, plan.tile.n);
  const StemGradArgs a = {StemArgs(p, StemPatch(p, rows, false), rows, plan.splits),
                          static_cast<int>(of.dy_bytes),
                          static_cast<int>(of.stage_bytes),
                          static_cast<int>(row_tiles),
                          static_cast<int>(column_tiles),
                          static_cast<int>(columns),
                          (p.channels_last ? p.k : p.out.w) % e == 0 && address(dy) % 16 == 0};
  float* const parts = static_cast<float*>(partials);
  float* const bias_parts =
      with_bias ? static_cast<float*>(WeightPartials(p, plan.splits).bias_part(partials)) : nullptr;
  dispatch_stem(p, [&](auto products) {
    using P = decltype(products);
    using T = typename P::T;
    const auto start = [&](auto shape, auto constant) {
      using S = decltype(shape);
      launch("conv_stem_weight_grad", stem_weight_grad_kernel<P, S, decltype(constant)::value>,
             static_cast<unsigned>(row_tiles * column_tiles * plan.splits), S::kThreadsOf,
             static_cast<size_t>(of.shared), stream, a, static_cast<const T*>(dy), static_cast<const T*>(x),
             parts, bias_parts);
    };
    const auto with_shape = [&](auto shape) {
      if (p.channels_last)
        start(shape, std::true_type{});
      else
        start(shape, std::false_type{});
    };
    if (plan.tile.n == 160)
      with_shape(GradShape<1, 5>{});
    else if (plan.tile.n == 64)
      with_shape(GradShape<2, 2>{});
    else
      with_shape(GradShape<4, 1>{});
  });
}

}  // namespace cuda
}  // namespace fastops
