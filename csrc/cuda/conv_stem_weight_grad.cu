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
  int row_tiles, column_tiles, columns;  // columns: r · s · c; one more is of ones, for the bias
  bool vectors;
};

// A warp has 64 channels × 32 columns; in TF32 half of the channels, and a quarter where three products for
// one, and sums in two stages, want registers. If there are fewer columns than for all warps, several groups
// of warps share a tile's pixels instead, and add up at the end.
template <typename P>
constexpr int kWarpsAlong = P::kThree                    ? 4
                            : sizeof(typename P::T) == 4 ? 2
                                                         : 1;
template <int columns, int groups, typename P>
struct GradShape : Shape<kWarpsAlong<P>, columns / 32, 4 / kWarpsAlong<P>, 4> {
  static constexpr int kGroups = groups, kThreadsOf = 32 * groups * (columns / 32) * kWarpsAlong<P>;
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

// Brings a tile of dy: zeros for channels and pixels that are not there. dy is its first element.
template <typename T, bool channels_last, int threads>
__device__ void load_dy(unsigned char* tile, const T* dy, const StemGradArgs& a, int rows, int pixels,
                        int channels) {
  constexpr int e = kElements<T>, kPixels = kTileRows<T> * kStemColumns, kRun = channels_last ? 64 : kPixels;
  const auto source = [&](int k, int m) {
    const int row = m / kStemColumns, pixel = m % kStemColumns;
    if (k >= channels || row >= rows || pixel >= pixels) return -1;
    return channels_last ? (row * a.of.y_w + pixel) * a.of.k + k : (k * a.of.y_h + row) * a.of.y_w + pixel;
  };
  if (a.vectors) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 64 * kPixels / e; i += threads) {
      const int outer = i / (kRun / e), inner = i % (kRun / e) * e;
      const int k = channels_last ? inner : outer, m = channels_last ? outer : inner, from = source(k, m);
      copy_async_16(dy_place<T, channels_last>(tile, k, m), dy + (from < 0 ? 0 : from), from >= 0);
    }
  } else if (threadIdx.x < 128) {  // whose place in a run does not change
    const int inner = static_cast<int>(threadIdx.x) % kRun;
#pragma unroll 2
    for (int outer = static_cast<int>(threadIdx.x) / kRun; outer < 64 * kPixels / kRun; outer += 128 / kRun) {
      const int k = channels_last ? inner : outer, m = channels_last ? outer : inner, from = source(k, m);
      *dy_place<T, channels_last>(tile, k, m) = from < 0 ? from_acc<T>(0) : dy[from];
    }
  }
}

// Columns of the product: x's elements, found as a pixel's place plus that of (r, s, c). A register of b has
// two neighbouring pixels of one column, or one in fp32. Lanes of a warp read some 20 words in a row.
template <typename T, typename S>
struct PatchColumns {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  static constexpr uint32_t kOne = sizeof(T) == 4                   ? 0x3F800000u
                                   : std::is_same<T, __half>::value ? 0x3C003C00u
                                                                    : 0x3F803F80u;
  const Bits* patch;
  int column0;             // of the warp
  int offset[S::kN];       // of this lane's columns
  unsigned ones;           // bit j: the lane's j-th column is of ones
  int to_right, to_below;  // elements from a pixel's to its neighbour's
  int first_row;           // of the step
  int rows, pixels;        // that exist: of the tile, and in a row

  __device__ PatchColumns(const StemGradArgs& a, int first_column, int column0_, int lane)
      : column0(column0_), ones(0), to_right(a.of.to_right), to_below(a.of.to_below) {
    const int row_length = a.of.kernel_w * a.of.c;
#pragma unroll
    for (int j = 0; j < S::kN; ++j) {
      const int column = first_column + column0 + 8 * j + lane / 4, r = column / row_length;
      offset[j] = column < a.columns ? r * a.of.pitch + column - r * row_length : 0;
      ones |= (column == a.columns ? 1u : 0u) << j;
    }
  }
  __device__ void load_b(uint32_t (&b)[2][2], int first, int step, int lane) const {
    const int j = (first - column0) / 8;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + (sizeof(T) == 2 ? step : 0);
      const int pixel = sizeof(T) == 2 ? lane % 4 * 2 + 8 * r : lane % 4 + 4 * r + 8 * step;
      // What is under a pixel that y has not may be anything, NaN too; it must not meet dy's zero.
      uint32_t mask = row < rows && pixel < pixels ? 0xFFFFFFFFu : 0;
      if (sizeof(T) == 2 && pixel + 1 >= pixels) mask &= 0xFFFFu;
      const Bits* const from = patch + row * to_below + pixel * to_right;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t word = from[offset[j + half]];
        if constexpr (sizeof(T) == 2) word |= static_cast<uint32_t>(from[offset[j + half] + to_right]) << 16;
        b[half][r] = (ones >> (j + half) & 1 ? kOne : word) & mask;
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
  FASTOPS_SHARED(left, int[2][2]);                  // rows and pixels that y has from a stage's tile on
  FASTOPS_SHARED(group_biases, float[S::kGroups][64]);
  unsigned char* const shared = dynamic_shared<unsigned char>();
  const int warp = static_cast<int>(threadIdx.x) / 32, group = warp / (S::kWarpsN * S::kWarpsM);

  int64_t block = blockIdx.x;
  const int k0 = static_cast<int>(block % a.row_tiles) * 64;
  block /= a.row_tiles;
  const int first_column = static_cast<int>(block % a.column_tiles) * S::kColumns;
  const int64_t part = block / a.column_tiles;
  const int64_t from = part * a.of.tiles / a.of.workers, to = (part + 1) * a.of.tiles / a.of.workers;
  const int tiles = static_cast<int>(to - from);

  const auto dy_tile = [&](int stage) { return shared + stage * a.stage_bytes; };
  const auto patch = [&](int stage) {
    return reinterpret_cast<T*>(shared + stage * a.stage_bytes + a.dy_bytes);
  };
  StemPlace next(a.of, from);
  const auto load = [&](int stage) {
    const int64_t area = int64_t{a.of.y_h} * a.of.y_w, image = int64_t{next.n} * a.of.k * area;
    const int64_t pixel = int64_t{next.p} * a.of.y_w + next.q;
    load_dy<T, channels_last, S::kThreadsOf>(
        dy_tile(stage), dy + image + (channels_last ? pixel * a.of.k + k0 : k0 * area + pixel), a,
        a.of.y_h - next.p, a.of.y_w - next.q, a.of.k - k0);
    commit_copies();
    load_patch<T, S::kThreadsOf, 4>(patch(stage), x, a.of, next);
    if (threadIdx.x == 0) left[stage][0] = a.of.y_h - next.p, left[stage][1] = a.of.y_w - next.q;
  };

  Sums<P, S> sums;
  sums.row0 -= group * 64;
  PatchColumns<T, S> columns(a, first_column, sums.column0, sums.lane);
  // The bias: of 16-bit types the sums of the column of ones; of fp32, which TF32 would round, plain ones.
  RowSums<T, S> bias_sums;
  const bool plain_bias = sizeof(T) == 4 && bias_partials && first_column == 0;
  const bool in_this_warp = plain_bias && sums.column0 == 0;

  // Each time a tile is brought, and the one before is multiplied.
  for (int i = 0; i <= tiles; ++i) {
    wait_for_copies<0>();
    __syncthreads();  // the tile before is there; all have done with the one before that
    if (i < tiles) {
      load(i % 2);
      next.advance(a.of);
    }
    if (i > 0) {
      const int stage = 1 - i % 2;
      columns.rows = left[stage][0];
      columns.pixels = left[stage][1];
      columns.patch = reinterpret_cast<const typename PatchColumns<T, S>::Bits*>(patch(stage));
#pragma unroll 1
      for (int j = 0; j < kEach; ++j) {
        const int step = group * kEach + j;
        columns.first_row = step * kStepRows;
        const Tile rows_of_step{dy_tile(stage) + step * Tile::kBytes};
#pragma unroll 1
        for (int part = 0; part < kParts<T>; ++part) sums.add_part(rows_of_step, columns, part);
        if (plain_bias && sums.column0 == 0) bias_sums.add(i * kEach + j, rows_of_step, sums.row0, sums.lane);
      }
      sums.fold_sums();
    }
  }

  if (plain_bias) {
    if (in_this_warp)
      bias_sums.for_each(sums.lane, [&](int row, float sum) { group_biases[group][sums.row0 + row] = sum; });
    __syncthreads();
    if (threadIdx.x < 64 && k0 + static_cast<int>(threadIdx.x) < a.of.k) {
      float sum = 0;
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) sum += group_biases[g][threadIdx.x];
      bias_partials[part * a.of.k + k0 + threadIdx.x] = sum;
    }
  }

  // The groups' sums, in their order.
  if constexpr (S::kGroups > 1) {
    constexpr int kOfGroup = 64 * S::kColumns;
    float* const others = reinterpret_cast<float*>(shared);
    __syncthreads();
    if (group > 0)
      sums.for_each_pair([&](int row, int column, float first, float second) {
        *reinterpret_cast<Pack<float, 2>*>(others + (group - 1) * kOfGroup + row * S::kColumns +
                                           column) = {{first, second}};
      });
    __syncthreads();
    if (group > 0) return;
#pragma unroll 1
    for (int g = 0; g < S::kGroups - 1; ++g)
      sums.add_pairs([&](int row, int column) {
        return *reinterpret_cast<const Pack<float, 2>*>(others + g * kOfGroup + row * S::kColumns + column);
      });
  }
  sums.for_each_pair([&](int row, int column, float first, float second) {
    row += k0;
    column += first_column;
    if (row >= a.of.k) return;
    const int64_t at = part * a.of.k + row;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float sum = u == 0 ? first : second;
      if (column + u < a.columns) partials[at * a.columns + column + u] = sum;
      if (sizeof(T) == 2 && column + u == a.columns && bias_partials) bias_partials[at] = sum;
    }
  });
}

}  // namespace

void stem_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                      void* partials, bool with_bias, void* stream) {
  const StemGrad of(p);
  const int64_t rows = stem_grad_rows(p), e = 16 / element_bytes(p.dtype), columns = conv_taps(p) * p.c;
  const int64_t row_tiles = ceil_div(p.k, 64), column_tiles = ceil_div(columns + 1, plan.tile.n);
  const StemGradArgs a = {StemArgs(p, StemPatch(p, rows, false), rows, plan.splits),
                          static_cast<int>(of.dy_bytes),
                          static_cast<int>(of.stage_bytes),
                          static_cast<int>(row_tiles),
                          static_cast<int>(column_tiles),
                          static_cast<int>(columns),
                          (p.channels_last ? p.k : p.out.w) % e == 0 && address(dy) % 16 == 0};
  float* const parts = static_cast<float*>(partials);
  float* const bias_parts =
      static_cast<float*>(WeightPartials(p, plan.splits).bias_part(partials, with_bias));
  dispatch_products(p, [&](auto products) {
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
    if constexpr (!P::kThree)
      if (plan.tile.n == 160) return with_shape(GradShape<160, 1, P>{});
    if (plan.tile.n == 64)
      with_shape(GradShape<64, 2, P>{});
    else
      with_shape(GradShape<32, 4, P>{});
  });
}

}  // namespace cuda
}  // namespace fastops
