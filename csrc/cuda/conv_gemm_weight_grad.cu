// The weight gradient on tensor cores: rows are w's result channels k, columns its (tap, channel), and the
// sum is over the pixels of all images, in plan.splits parts. dy's channels and the gathered x come
// as memory has them: with the pixels outside (channels_last) or inside. The sums of dy, for the bias, are
// one more column, of ones.
#include "conv_gemm.h"
#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

struct WeightGemmArgs {
  NarrowTapAxis h, w;  // of the forward pass: pixels of y, taps, and where they are in x
  int64_t n;
  int groups, c, k;  // channels of a group
  int chunks;        // of 16 bytes that a tap's c channels take
  int64_t row_tiles, column_tiles, splits, steps;
  Strides x, dy;
  int64_t all_k;
};

// A column of w: where its elements of x are, relative to a pixel's first.
struct Column {
  int h, w, c;  // c < 0: no column, or a channel that fills up
};

template <typename T>
__device__ Column column_at(const WeightGemmArgs& a, int index) {
  const int per_tap = a.chunks * kElements<T>, tap = index / per_tap, c = index - tap * per_tap;
  const int row = tap / a.w.taps;
  return {row, tap - row * a.w.taps, row < a.h.taps && c < a.c ? c : -1};
}

constexpr int kStages = 4;

// Both operands where channels are whole 16 bytes: asynchronous copies. A thread has one chunk of
// either operand's channels, for some of a step's pixels.
template <typename T, typename S>
struct VectorOperands {
  using A = RowMajorTile<T, S::kRows>;
  using B = RowMajorTile<T, S::kColumns>;
  static constexpr int kWide = S::kRows / kElements<T>, kWideB = S::kColumns / kElements<T>;
  static constexpr int kApart = S::kThreadsOf / kWide, kApartB = S::kThreadsOf / kWideB;
  static_assert(kStep<T> % kApart == 0 && kStep<T> % kApartB == 0);
  const T *dy, *x;
  Column column;
  bool valid;

  __device__ VectorOperands(const T* dy_, const T* x_, const WeightGemmArgs& a, int row0, int column0,
                            Column*) {
    const int row = row0 + static_cast<int>(threadIdx.x) % kWide * kElements<T>;
    valid = row < a.k;
    dy = dy_ + (valid ? row : 0);
    column = column_at<T>(a, column0 + static_cast<int>(threadIdx.x) % kWideB * kElements<T>);
    x = x_ + (column.c < 0 ? 0 : column.c);
  }
  // The step's pixels begin at `first` of the run.
  __device__ void copy(const A& a_tile, const B& b_tile, const WeightGemmArgs& a, const PixelRun& run,
                       int first) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kStep<T> / kApart; ++i) {
      const int k = t / kWide + i * kApart, m = first + k;
      const bool inside = valid && m < run.left;
      const Pixel p = run.at(inside ? m : 0, a.h, a.w);
      copy_async_16(a_tile.at(t % kWide * kElements<T>, k), dy + p.n * a.dy.n + p.h * a.dy.h + p.w * a.dy.w,
                    inside);
    }
#pragma unroll
    for (int i = 0; i < kStep<T> / kApartB; ++i) {
      const int k = t / kWideB + i * kApartB, m = first + k;
      const bool in_run = m < run.left;
      const Pixel p = run.at(in_run ? m : 0, a.h, a.w);
      const int h = p.h * a.h.step + a.h.off0 + column.h * a.h.off_step;
      const int w = p.w * a.w.step + a.w.off0 + column.w * a.w.off_step;
      const bool inside = in_run && column.c >= 0 &&
                          static_cast<unsigned>(h) < static_cast<unsigned>(a.h.source) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(a.w.source);
      copy_async_16(b_tile.at(t % kWideB * kElements<T>, k),
                    x + p.n * a.x.n + (inside ? h * a.x.h + w * a.x.w : 0), inside);
    }
  }
  __device__ void fetch(const WeightGemmArgs&, const PixelRun&, int) {}
  __device__ void put(const A&, const B&) const {}
};

// Otherwise: single elements, by lanes that have neighbouring pixels. A thread has one pixel of a step, and
// every kApart-th row and column.
template <typename T, typename S>
struct ElementOperands {
  using A = KMajorTile<T, S::kRows>;
  using B = KMajorTile<T, S::kColumns>;
  static constexpr int kApart = S::kThreadsOf / kStep<T>;
  static constexpr int kOfA = S::kRows / kApart, kOfB = S::kColumns / kApart;
  const T *dy, *x;
  int rows;               // of this tile
  const Column* columns;  // in shared memory, after the constructor and a barrier
  T kept_a[kOfA], kept_b[kOfB];

  __device__ ElementOperands(const T* dy_, const T* x_, const WeightGemmArgs& a, int row0, int column0,
                             Column* table)
      : dy(dy_ + row0 * a.dy.c), x(x_), rows(a.k - row0), columns(table) {
    for (int i = static_cast<int>(threadIdx.x); i < S::kColumns; i += S::kThreadsOf) {
      const Column column = column_at<T>(a, column0 + i);
      table[i].h = column.h, table[i].w = column.w, table[i].c = column.c;
    }
  }
  __device__ void fetch(const WeightGemmArgs& a, const PixelRun& run, int first) {
    const int t = static_cast<int>(threadIdx.x), m = first + t % kStep<T>;
    const bool in_run = m < run.left;
    const Pixel p = run.at(in_run ? m : 0, a.h, a.w);
    const T* const from = dy + p.n * a.dy.n + p.h * a.dy.h + p.w * a.dy.w;
#pragma unroll
    for (int i = 0; i < kOfA; ++i) {
      const int row = t / kStep<T> + i * kApart;
      kept_a[i] = in_run && row < rows ? from[row * a.dy.c] : from_acc<T>(0);
    }
    const T* const image = x + p.n * a.x.n;
    const int h0 = p.h * a.h.step + a.h.off0, w0 = p.w * a.w.step + a.w.off0;
#pragma unroll
    for (int i = 0; i < kOfB; ++i) {
      const Column& column = columns[t / kStep<T> + i * kApart];
      const int h = h0 + column.h * a.h.off_step, w = w0 + column.w * a.w.off_step;
      const bool inside = in_run && column.c >= 0 &&
                          static_cast<unsigned>(h) < static_cast<unsigned>(a.h.source) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(a.w.source);
      kept_b[i] = inside ? image[h * a.x.h + w * a.x.w + column.c * a.x.c] : from_acc<T>(0);
    }
  }
  __device__ void put(const A& a_tile, const B& b_tile) const {
    const int t = static_cast<int>(threadIdx.x), k = t % kStep<T>;
#pragma unroll
    for (int i = 0; i < kOfA; ++i) a_tile.put(t / kStep<T> + i * kApart, k, kept_a[i]);
#pragma unroll
    for (int i = 0; i < kOfB; ++i) b_tile.put(t / kStep<T> + i * kApart, k, kept_b[i]);
  }
  __device__ void copy(const A&, const B&, const WeightGemmArgs&, const PixelRun&, int) const {}
};

template <typename T, typename S, bool vectors>
using Operands = std::conditional_t<vectors, VectorOperands<T, S>, ElementOperands<T, S>>;

template <typename T, typename S, bool vectors>
constexpr int stage_bytes() {
  return Operands<T, S, vectors>::A::kBytes + Operands<T, S, vectors>::B::kBytes;
}

template <typename P, typename S, bool vectors>
__global__ void __launch_bounds__(S::kThreadsOf, 512 / S::kThreadsOf)
    conv_gemm_weight_grad_kernel(const __grid_constant__ WeightGemmArgs a, const typename P::T* dy,
                                 const typename P::T* x, float* partials, float* bias_partials) {
  using T = typename P::T;
  using O = Operands<T, S, vectors>;
  FASTOPS_SHARED(table, Column[S::kColumns]);
  unsigned char* const shared = dynamic_shared<unsigned char>();

  int64_t block = blockIdx.x;
  const int row0 = static_cast<int>(block % a.row_tiles) * S::kRows;
  block /= a.row_tiles;
  const int column0 = static_cast<int>(block % a.column_tiles) * S::kColumns;
  block /= a.column_tiles;
  const int64_t group = block % a.groups, part = block / a.groups;
  // This part's steps, and their pixels.
  const int64_t from = part * a.steps / a.splits, to = (part + 1) * a.steps / a.splits;
  const int steps = static_cast<int>(to - from);
  const PixelRun run(from * kStep<T>, a.n, a.h.grid * a.w.grid, steps * kStep<T>);

  O operands(dy + run.image * a.dy.n + group * a.k * a.dy.c, x + run.image * a.x.n + group * a.c * a.x.c, a,
             row0, column0, table);
  __syncthreads();  // the table
  const auto a_tile = [&](int stage) { return typename O::A{shared + stage * stage_bytes<T, S, vectors>()}; };
  const auto b_tile = [&](int stage) {
    return typename O::B{shared + stage * stage_bytes<T, S, vectors>() + O::A::kBytes};
  };
  const auto copy = [&](int step) {
    if (step < steps) operands.copy(a_tile(step % kStages), b_tile(step % kStages), a, run, step * kStep<T>);
    commit_copies();
  };
  if (steps > 0) {
    operands.fetch(a, run, 0);
    operands.put(a_tile(0), b_tile(0));
  }

  Sums<P, S> sums;
  RowSums<T, S> bias_sums;
  const bool with_bias = bias_partials && column0 == 0 && sums.column0 == 0;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) operands.fetch(a, run, (step + 1) * kStep<T>);
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copy(step + kStages - 1);
    sums.add(step, a_tile(step % kStages), b_tile(step % kStages));
    if (with_bias) bias_sums.add(step, a_tile(step % kStages), sums.row0, sums.lane);
    if (step + 1 < steps) operands.put(a_tile((step + 1) % kStages), b_tile((step + 1) % kStages));
  }
  wait_for_copies<0>();

  const int per_tap = a.chunks * kElements<T>, taps = a.h.taps * a.w.taps;
  partials += (part * a.all_k + group * a.k) * taps * a.c;
  sums.for_each_pair([&](int row, int column, float first, float second) {
    row += row0, column += column0;
    const int tap = column / per_tap, c = column - tap * per_tap;  // pairs do not straddle taps
    if (row >= a.k || tap >= taps) return;
    float* const at = partials + (static_cast<int64_t>(row) * taps + tap) * a.c + c;
    if (c < a.c) at[0] = first;
    if (c + 1 < a.c) at[1] = second;
  });
  if (with_bias)
    bias_sums.for_each(sums.lane, [&](int row, float sum) {
      row += row0 + sums.row0;
      if (row < a.k) bias_partials[part * a.all_k + group * a.k + row] = sum;
    });
}

}  // namespace

void gemm_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                      void* partials, bool with_bias, void* stream) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const int64_t bytes = element_bytes(p.dtype), e = 16 / bytes;
  WeightGemmArgs a = {
      NarrowTapAxis(forward_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h)),
      NarrowTapAxis(forward_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w)),
      p.n,
      static_cast<int>(p.groups),
      static_cast<int>(c),
      static_cast<int>(k),
      static_cast<int>(ceil_div(c, e)),
      0,
      0,
      plan.splits,
      ceil_div(p.n * volume(p.out), kChunks * e),
      Strides(p.channels_last, p.c, p.in),
      Strides(p.channels_last, p.k, p.out),
      p.k};
  const bool vectors = p.channels_last && c % e == 0 && k % e == 0 && (address(dy) | address(x)) % 16 == 0;
  float* const parts = static_cast<float*>(partials);
  float* const bias_parts =
      static_cast<float*>(WeightPartials(p, plan.splits).bias_part(partials, with_bias));
  dispatch_products(p, [&](auto products) {
    using P = decltype(products);
    using T = typename P::T;
    const auto start = [&](auto shape, auto constant) {
      using S = decltype(shape);
      constexpr bool v = decltype(constant)::value;
      a.row_tiles = ceil_div(k, S::kRows);
      a.column_tiles = ceil_div(conv_taps(p) * a.chunks * kElements<T>, S::kColumns);
      const int64_t blocks = a.row_tiles * a.column_tiles * a.groups * a.splits;
      launch("conv_gemm_weight_grad", conv_gemm_weight_grad_kernel<P, S, v>, static_cast<unsigned>(blocks),
             S::kThreadsOf, kStages * stage_bytes<T, S, v>(), stream, a, static_cast<const T*>(dy),
             static_cast<const T*>(x), parts, bias_parts);
    };
    // Rows and columns of a tile: 128 × 128 (TF32: 128 × 64), or 64 × 64 where single elements are kept, and
    // for three products instead of one, which want registers.
    if constexpr (!P::kThree) {
      using Large = std::conditional_t<sizeof(T) == 2, Shape<2, 4, 4, 4>, Shape<4, 2, 2, 4>>;
      if (vectors && plan.tile.m == 128) return start(Large{}, std::true_type{});
    }
    if (vectors)
      start(Shape<2, 4, 2, 2>{}, std::true_type{});
    else
      start(Shape<2, 4, 2, 2>{}, std::false_type{});
  });
}

}  // namespace cuda
}  // namespace fastops
