// Convolution and its input gradient on tensor cores, as products of matrices that are never made:
// rows are the result's pixels, columns its channels, and the sum is over (tap, source channel). The
// gathered rows are built tile by tile in shared memory. One launch serves all stride phases of an input
// gradient, each a product of its own with the taps that it has.
#include "conv_gemm.h"
#include "conv_pack.h"
#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kMostPhases = 4;  // per axis

struct GemmArgs {
  NarrowTapAxis h[kMostPhases], w[kMostPhases];
  int phases_h, phases_w;
  int64_t n;
  int groups, inner, outer;  // channels of a group in source and result
  int chunks;                // of 16 bytes that a tap's inner channels take
  int taps, kernel_w;        // of w
  int64_t row_tiles, column_tiles;
  Strides source, result;
  bool channels_last, relu, wide_stores;
};

// The columns' tile: rows of the packed weights, 16 bytes at a time. And where in the sum a thread's chunk
// is: both operands' loaders follow it.
struct Term {
  int h, w, chunk;  // tap of the phase, and chunk of its channels
  __device__ void advance(int by, const NarrowTapAxis& axis_w, int chunks) {
    chunk += by;
    while (chunk >= chunks) {
      chunk -= chunks;
      if (++w == axis_w.taps) w = 0, ++h;
    }
  }
};

// The rows' tile where a pixel's channels are whole 16 bytes: asynchronous copies. A thread has one chunk
// of some pixels, `kPixels` of them.
template <typename T, typename S>
struct VectorRows {
  using Tile = KMajorTile<T, S::kRows>;
  static constexpr int kApart = S::kThreadsOf / kChunks, kPixels = S::kRows / kApart;
  const T* base[kPixels];  // channel 0 of the group at (0, 0) of the image
  int h0[kPixels], w0[kPixels];

  __device__ VectorRows(const T* source, const GemmArgs& a, const NarrowTapAxis& h, const NarrowTapAxis& w,
                        const PixelRun& run) {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int m = static_cast<int>(threadIdx.x) / kChunks + i * kApart;
      const Pixel p = run.at(m < run.left ? m : 0, h, w);
      base[i] = source + (run.image + p.n) * a.source.n;
      h0[i] = m < run.left ? p.h * h.step + h.off0 : -(1 << 30);  // outside, at every tap
      w0[i] = p.w * w.step + w.off0;
    }
  }
  __device__ void copy(const Tile& tile, const GemmArgs& a, const NarrowTapAxis& h, const NarrowTapAxis& w,
                       const Term& at, bool inside_sum) const {
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int y = h0[i] + at.h * h.off_step, x = w0[i] + at.w * w.off_step;
      const bool valid = inside_sum && static_cast<unsigned>(y) < static_cast<unsigned>(h.source) &&
                         static_cast<unsigned>(x) < static_cast<unsigned>(w.source);
      const T* from = base[i] + (valid ? y * a.source.h + x * a.source.w + at.chunk * kElements<T> : 0);
      copy_async_16(tile.chunk(static_cast<int>(threadIdx.x) / kChunks + i * kApart,
                               static_cast<int>(threadIdx.x) % kChunks),
                    from, valid);
    }
  }
};

// The rows' tile otherwise: single elements, by lanes that have neighbouring pixels of one channel. A thread
// has one pixel and `kShare` successive terms of the sum, and keeps them until the tile may be written.
template <typename T, typename S>
struct ElementRows {
  using Tile = RowMajorTile<T, S::kRows>;
  static constexpr int kParts = S::kThreadsOf / S::kRows, kShare = kStep<T> / kParts;
  static_assert(kShare % kElements<T> == 0);
  const T* base;
  int h0, w0;
  T kept[kShare];

  __device__ ElementRows(const T* source, const GemmArgs& a, const NarrowTapAxis& h, const NarrowTapAxis& w,
                         const PixelRun& run) {
    const int m = static_cast<int>(threadIdx.x) % S::kRows;
    const Pixel p = run.at(m < run.left ? m : 0, h, w);
    base = source + (run.image + p.n) * a.source.n;
    h0 = m < run.left ? p.h * h.step + h.off0 : -(1 << 30);
    w0 = p.w * w.step + w.off0;
  }
  // The terms from `at` on, which is this thread's place.
  __device__ void fetch(const GemmArgs& a, const NarrowTapAxis& h, const NarrowTapAxis& w, Term at) {
#pragma unroll
    for (int part = 0; part < kShare / kElements<T>; ++part) {
      const int y = h0 + at.h * h.off_step, x = w0 + at.w * w.off_step, c = at.chunk * kElements<T>;
      const bool valid = at.h < h.taps && static_cast<unsigned>(y) < static_cast<unsigned>(h.source) &&
                         static_cast<unsigned>(x) < static_cast<unsigned>(w.source);
      const T* from = base + (valid ? y * a.source.h + x * a.source.w + c * a.source.c : 0);
#pragma unroll
      for (int i = 0; i < kElements<T>; ++i)
        kept[part * kElements<T> + i] = valid && c + i < a.inner ? from[i * a.source.c] : from_acc<T>(0);
      at.advance(1, w, a.chunks);
    }
  }
  __device__ void put(const Tile& tile) const {
    const int m = static_cast<int>(threadIdx.x) % S::kRows;
    const int k = static_cast<int>(threadIdx.x) / S::kRows * kShare;
#pragma unroll
    for (int i = 0; i < kShare; ++i) tile.put(m, k + i, kept[i]);
  }
};

template <typename T, typename S, bool vectors>
using Rows = std::conditional_t<vectors, VectorRows<T, S>, ElementRows<T, S>>;

constexpr int kStages = 4;

template <typename T, typename S, bool vectors>
constexpr int stage_bytes() {
  return Rows<T, S, vectors>::Tile::kBytes + KMajorTile<T, S::kColumns>::kBytes;
}
// The result's tile is staged where the operands were: rows of channels, or of pixels.
template <typename T, typename S>
constexpr int result_bytes() {
  constexpr int a = S::kRows * (S::kColumns + kElements<T>), b = S::kColumns * (S::kRows + kElements<T>);
  return (a > b ? a : b) * static_cast<int>(sizeof(T));
}
template <typename T, typename S, bool vectors>
constexpr int shared_bytes() {
  constexpr int operands = kStages * stage_bytes<T, S, vectors>(), result = result_bytes<T, S>();
  return operands > result ? operands : result;
}

// Writes the block's tile, from shared memory, in runs of what is contiguous in the result.
template <typename T, typename S>
__device__ void store_tile(const T* staged, T* result, const GemmArgs& a, const NarrowTapAxis& h,
                           const NarrowTapAxis& w, const PixelRun& run, int64_t channel0, int columns) {
  constexpr int e = kElements<T>;
  const int outer_count = a.channels_last ? S::kRows : S::kColumns;
  const int run_length = a.channels_last ? S::kColumns : S::kRows, pitch = run_length + e;
  const int width = a.wide_stores ? e : 1, per_run = run_length / width;
  for (int i = static_cast<int>(threadIdx.x); i < outer_count * per_run; i += S::kThreadsOf) {
    const int outer = i / per_run, inner = (i - outer * per_run) * width;
    const int m = a.channels_last ? outer : inner, column = a.channels_last ? inner : outer;
    if (m >= run.left || column >= columns) continue;
    const Pixel p = run.at(m, h, w);
    T* to = result + (run.image + p.n) * a.result.n + (h.out0 + p.h * h.out_step) * a.result.h +
            (w.out0 + p.w * w.out_step) * a.result.w + (channel0 + column) * a.result.c;
    const T* from = staged + outer * pitch + inner;
    if (a.wide_stores)
      *reinterpret_cast<Pack<T, e>*>(to) = *reinterpret_cast<const Pack<T, e>*>(from);
    else
      *to = *from;
  }
}

template <typename P, typename S, bool vectors>
__global__ void __launch_bounds__(S::kThreadsOf, 512 / S::kThreadsOf)
    conv_gemm_kernel(const __grid_constant__ GemmArgs a, const typename P::T* source,
                     const typename P::T* weights, const typename P::T* bias, typename P::T* result) {
  using T = typename P::T;
  using RowTile = typename Rows<T, S, vectors>::Tile;
  using ColumnTile = KMajorTile<T, S::kColumns>;
  unsigned char* const shared = dynamic_shared<unsigned char>();

  // Neighbouring blocks have the same pixels and other channels: their pixels come from the L2 cache.
  int64_t block = blockIdx.x;
  const int64_t column_tile = block % a.column_tiles;
  block /= a.column_tiles;
  const int64_t row_tile = block % a.row_tiles;
  block /= a.row_tiles;
  const int group = static_cast<int>(block % a.groups), phase = static_cast<int>(block / a.groups);
  const NarrowTapAxis &h = a.h[phase / a.phases_w], &w = a.w[phase % a.phases_w];
  const int area = h.grid * w.grid;
  if (row_tile * S::kRows >= a.n * area) return;  // the phases differ by a row or a column

  const PixelRun run(row_tile * S::kRows, a.n, area, S::kRows);
  const int first_column = static_cast<int>(column_tile) * S::kColumns;
  const int columns = a.outer - first_column < S::kColumns ? a.outer - first_column : S::kColumns;
  const int64_t channel0 = static_cast<int64_t>(group) * a.outer + first_column;
  const int steps = (h.taps * w.taps * a.chunks + kChunks - 1) / kChunks;

  Rows<T, S, vectors> rows(source + static_cast<int64_t>(group) * a.inner * a.source.c, a, h, w, run);
  const auto row_tile_of = [&](int stage) { return RowTile{shared + stage * stage_bytes<T, S, vectors>()}; };
  const auto column_tile_of = [&](int stage) {
    return ColumnTile{shared + stage * stage_bytes<T, S, vectors>() + RowTile::kBytes};
  };

  // This thread's chunk of the columns (and, in vectors, of the rows): the next one to be copied.
  Term place{h.taps > 0 && w.taps > 0 ? 0 : h.taps, 0, 0};
  if (steps > 0) place.advance(static_cast<int>(threadIdx.x) % kChunks, w, a.chunks);
  const auto copy = [&](int step) {
    if (step < steps) {
      const bool inside_sum = place.h < h.taps;
      const ColumnTile tile = column_tile_of(step % kStages);
      const int tap = (h.tap0 + place.h * h.tap_step) * a.kernel_w + w.tap0 + place.w * w.tap_step;
#pragma unroll
      for (int i = 0; i < S::kColumns * kChunks / S::kThreadsOf; ++i) {
        const int column = static_cast<int>(threadIdx.x) / kChunks + i * (S::kThreadsOf / kChunks);
        const bool valid = inside_sum && column < columns;
        const int64_t at = ((channel0 + column) * a.taps + tap) * a.chunks + place.chunk;
        copy_async_16(tile.chunk(column, static_cast<int>(threadIdx.x) % kChunks),
                      weights + (valid ? at * kElements<T> : 0), valid);
      }
      if constexpr (vectors) rows.copy(row_tile_of(step % kStages), a, h, w, place, inside_sum);
      place.advance(kChunks, w, a.chunks);
    }
    commit_copies();  // a group per step, perhaps an empty one
  };
  // Single elements: the first of this thread's terms of the next step.
  Term term{0, 0, 0};
  const auto fetch = [&](int step) {
    if constexpr (!vectors) {
      if (step < steps) rows.fetch(a, h, w, term);
      if (step < steps) term.advance(kChunks, w, a.chunks);
    }
  };
  if constexpr (!vectors) {
    if (steps > 0)
      term.advance(static_cast<int>(threadIdx.x) / S::kRows * (Rows<T, S, vectors>::kShare / kElements<T>), w,
                   a.chunks);
    fetch(0);
    if (steps > 0) rows.put(row_tile_of(0));
  }

  Sums<P, S> sums;
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    fetch(step + 1);
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the step's tiles are there; all have done with those before it
    copy(step + kStages - 1);
    sums.add(step, row_tile_of(step % kStages), column_tile_of(step % kStages));
    if constexpr (!vectors)
      if (step + 1 < steps) rows.put(row_tile_of((step + 1) % kStages));
  }
  wait_for_copies<0>();
  __syncthreads();

  T* const staged = reinterpret_cast<T*>(shared);
  constexpr int e = kElements<T>;
  sums.for_each_pair([&](int row, int column, float first, float second) {
    float values[2] = {first, second};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (bias && column + i < columns) values[i] += to_acc(bias[channel0 + column + i]);
      if (a.relu && values[i] < 0) values[i] = 0;  // a NaN stays
      const T v = from_acc<T>(values[i]);
      if (a.channels_last)
        staged[row * (S::kColumns + e) + column + i] = v;
      else
        staged[(column + i) * (S::kRows + e) + row] = v;
    }
  });
  __syncthreads();
  store_tile<T, S>(staged, result, a, h, w, run, channel0, columns);
}

template <typename P, typename S, bool vectors>
void run(GemmArgs a, int64_t most_pixels, const typename P::T* source, const typename P::T* weights,
         const void* bias, void* result, void* stream) {
  using T = typename P::T;
  a.row_tiles = ceil_div(most_pixels, S::kRows);
  a.column_tiles = ceil_div(a.outer, S::kColumns);
  const int64_t blocks = a.row_tiles * a.column_tiles * a.groups * a.phases_h * a.phases_w;
  launch("conv_gemm", conv_gemm_kernel<P, S, vectors>, static_cast<unsigned>(blocks), S::kThreadsOf,
         shared_bytes<T, S, vectors>(), stream, a, source, weights, static_cast<const T*>(bias),
         static_cast<T*>(result));
}

void run_pass(const ConvParams& p, const ConvPlan& plan, bool input_grad, const void* source, const void* w,
              const void* bias, void* result, void* workspace, void* stream) {
  const int64_t phases_h = input_grad ? imin(p.stride.h, p.in.h) : 1;
  const int64_t phases_w = input_grad ? imin(p.stride.w, p.in.w) : 1;
  const PackedWeights packed(p, input_grad);
  GemmArgs a = {{},
                {},
                static_cast<int>(phases_h),
                static_cast<int>(phases_w),
                p.n,
                static_cast<int>(p.groups),
                static_cast<int>(packed.inner),
                static_cast<int>(packed.outer),
                static_cast<int>(packed.inner_padded * element_bytes(p.dtype) / 16),
                static_cast<int>(packed.taps),
                static_cast<int>(p.kernel.w),
                0,
                0,
                Strides(p.channels_last, input_grad ? p.k : p.c, input_grad ? p.out : p.in),
                Strides(p.channels_last, input_grad ? p.c : p.k, input_grad ? p.in : p.out),
                p.channels_last,
                p.relu && !input_grad,
                false};
  for (int64_t i = 0; i < phases_h; ++i)
    a.h[i] = NarrowTapAxis(
        input_grad ? input_grad_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h, i)
                   : forward_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h));
  for (int64_t i = 0; i < phases_w; ++i)
    a.w[i] = NarrowTapAxis(
        input_grad ? input_grad_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w, i)
                   : forward_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w));
  const int64_t area = static_cast<int64_t>(a.h[0].grid) * a.w[0].grid;  // the first phase has most
  dispatch_products(p, [&](auto products) {
    using P = decltype(products);
    using T = typename P::T;
    const int64_t e = kElements<T>;
    a.wide_stores = vectors_fit(a.channels_last ? a.outer : (a.phases_h * a.phases_w == 1 ? area : 0),
                                sizeof(T), address(result));
    const T* const weights = packed_weights<T>(p, input_grad, w, workspace, stream);
    const bool vectors = p.channels_last && a.inner % e == 0 && address(source) % 16 == 0;
    const auto start = [&](auto shape, auto constant) {
      run<P, decltype(shape), decltype(constant)::value>(a, p.n * area, static_cast<const T*>(source),
                                                         weights, bias, result, stream);
    };
    // Rows and columns of a tile: 128 × 128, 128 × 64, 64 × 32. Three products for one want more registers:
    // 64 × 64 is the largest then.
    const auto with_loads = [&](auto constant) {
      using Middle = std::conditional_t<P::kThree, Shape<2, 4, 2, 2>, Shape<4, 2, 2, 4>>;
      if constexpr (!P::kThree)
        if (plan.tile.m == 128 && plan.tile.n == 128) return start(Shape<2, 4, 4, 4>{}, constant);
      if (plan.tile.n >= 64)
        start(Middle{}, constant);
      else
        start(Shape<2, 2, 2, 2>{}, constant);
    };
    if (vectors)
      with_loads(std::true_type{});
    else
      with_loads(std::false_type{});
  });
}

}  // namespace

int64_t gemm_workspace(const ConvParams& p, ConvPass pass) {
  return packed_bytes(p, pass == ConvPass::kInputGrad);
}

void gemm_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
               void* y, void* workspace, void* stream) {
  run_pass(p, plan, false, x, w, bias, y, workspace, stream);
}

void gemm_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                     const void* bias, void* dx, void* workspace, void* stream) {
  run_pass(p, plan, true, dy, w, bias, dx, workspace, stream);
}

}  // namespace cuda
}  // namespace fastops
