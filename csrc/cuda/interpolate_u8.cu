// Weighted interpolation of uint8 images on the GPU: as on the CPU, weights in fixed point
// (fixed_point.h); first along W, then down H, each rounded to uint8.
#include "../fixed_point.h"
#include "banded.h"

namespace fastops {
namespace cuda {
namespace {

// ---- weights in fixed point ----------------------------------------------------------------------

// The weights of one axis in fp64, and where they go as integers.
template <typename I>
struct FixedPoint {
  Banded<double, I> exact;
  Banded<int16_t, I> table;
  double* largest;  // that each warp of the first kernel has made
  int maxima;
  int32_t* precision;

  FixedPoint(const SampleAxis& a, Arena& arena)
      : exact(a.out, a.in, max_taps_bound(a), false, arena),
        largest(arena.take<double>(kMostMaxima)),
        maxima(0),
        precision(arena.take<int32_t>(1)) {
    table.results = exact.results, table.sources = exact.sources;
    table.taps = exact.taps, table.per_result = exact.per_result, table.per_tap = exact.per_tap;
    table.span = exact.span;
    table.weight = arena.take<int16_t>(exact.results * exact.taps);
  }
};

// The precision depends on all the weights of an axis: each warp finds it for itself.
template <typename I>
__device__ inline void quantise(const FixedPoint<I>& f) {
  double largest = 0;
  for (int j = threadIdx.x % 32; j < f.maxima; j += 32) largest = fmax(largest, f.largest[j]);
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, distance));
  const int precision = precision_for(largest);
  if (first_item() == 0) *f.precision = precision;
  for (int64_t r = first_item(); r < f.table.results; r += item_stride()) {
    const I count = f.table.span[r].count;
    for (I k = 0; k < count; ++k) {
      const int64_t at = r * f.table.per_result + k * f.table.per_tap;
      f.table.weight[at] = fixed_weight(f.exact.weight[at], precision);
    }
  }
}

template <typename I>
__global__ void quantise_kernel(FixedPoint<I> rows, FixedPoint<I> columns) {
  if (blockIdx.y == 0)
    quantise(rows);
  else
    quantise(columns);
}

// ---- one axis at a time --------------------------------------------------------------------------

// x (planes, sources, inner) → y (planes, results, inner), as band_kernel of interpolate.cu.
template <int width, int together, typename I>
__global__ void band_u8_kernel(Banded<int16_t, I> m, const int32_t* precision, I inner, Divider<I> by_inner,
                               Spread<I> spread, int64_t work, const Pack<uint8_t, width>* __restrict__ x,
                               Pack<uint8_t, width>* __restrict__ y) {
  const int64_t in_plane = int64_t{m.sources} * inner;
  const int bits = *precision;
  for (int64_t index = first_item(); index < work; index += item_stride()) {
    const I chunk = spread.by_items(static_cast<I>(index));
    const I item = static_cast<I>(index) - chunk * spread.items, result = by_inner(item);
    const Span<I> span = m.span[result];
    const I start = span.begin * inner + item - result * inner;
    for (int64_t plane = chunk; plane < spread.planes; plane += int64_t{together} * spread.chunks) {
      const Pack<uint8_t, width>* from[together];
#pragma unroll
      for (int j = 0; j < together; ++j)
        from[j] = x + imin(plane + int64_t{j} * spread.chunks, spread.planes - 1) * in_plane;
      int32_t sum[together][width];
#pragma unroll
      for (int j = 0; j < together; ++j) {
#pragma unroll
        for (int u = 0; u < width; ++u) sum[j][u] = fixed_half(bits);
      }
      const int16_t* weight = m.weight + result * m.per_result;
      I source = start;
      for (I k = 0; k < span.count; ++k, source += inner, weight += m.per_tap) {
        const int32_t w = *weight;
#pragma unroll
        for (int j = 0; j < together; ++j) {
          const Pack<uint8_t, width> v = from[j][source];
#pragma unroll
          for (int u = 0; u < width; ++u) sum[j][u] += w * v.v[u];
        }
      }
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const int64_t to = plane + int64_t{j} * spread.chunks;
        Pack<uint8_t, width> sums;
#pragma unroll
        for (int u = 0; u < width; ++u) sums.v[u] = fixed_to_u8(sum[j][u], bits);
        if (to < spread.planes) y[to * spread.items + item] = sums;
      }
    }
  }
}

// ---- launchers -----------------------------------------------------------------------------------

constexpr const char* kName = "interpolate_weighted_u8";

template <int width, int together, typename I>
void launch_band(const FixedPoint<I>& f, int64_t planes, int64_t inner, const uint8_t* x, uint8_t* y,
                 void* stream) {
  const int64_t groups = inner / width;
  const Spread<I> spread(planes, f.table.results * groups, together);
  launch(kName, band_u8_kernel<width, together, I>, blocks_for(spread.work()), kThreads, 0, stream, f.table,
         f.precision, groups, Divider<I>(groups), spread, spread.work(),
         reinterpret_cast<const Pack<uint8_t, width>*>(x), reinterpret_cast<Pack<uint8_t, width>*>(y));
}

template <typename I>
void one_axis(const FixedPoint<I>& f, int64_t planes, int64_t inner, const uint8_t* x, uint8_t* y,
              void* stream) {
  const uintptr_t addresses = address(x) | address(y);
  if (vectors_fit(inner, 1, addresses))
    launch_band<16, 1>(f, planes, inner, x, y, stream);
  else if (inner % 4 == 0 && addresses % 4 == 0)
    launch_band<4, 1>(f, planes, inner, x, y, stream);
  else if (planes >= 4)
    launch_band<1, 4>(f, planes, inner, x, y, stream);
  else
    launch_band<1, 1>(f, planes, inner, x, y, stream);
}

int64_t middle_plane(const InterpolateParams& p) { return p.in.h * p.out.w * channels_of(p); }

bool is_small(const InterpolateParams& p) {
  constexpr int64_t limit = int64_t{1} << 31;
  return channels_of(p) * imax(volume(p.in), volume(p.out)) < limit && middle_plane(p) < limit;
}

template <typename I>
struct Work {
  int64_t planes_at_once;
  FixedPoint<I> rows, columns;
  uint8_t* middle;  // x, resized along W

  Work(const InterpolateParams& p, Arena& arena)
      : planes_at_once(cuda::planes_at_once(planes_of(p), middle_plane(p))),
        rows(axis_h(p), arena),
        columns(axis_w(p), arena),
        middle(arena.take<uint8_t>(middle_plane(p) * planes_at_once)) {}
};

template <typename I>
void apply(const InterpolateParams& p, const uint8_t* x, uint8_t* y, void* workspace, void* stream) {
  Arena arena(workspace);
  Work<I> work(p, arena);
  work.rows.maxima = work.columns.maxima =
      fill_tables<double, I>(kName, {axis_h(p), work.rows.exact, 0, false, work.rows.largest},
                             {axis_w(p), work.columns.exact, 0, false, work.columns.largest}, stream);
  launch(kName, quantise_kernel<I>, dim3(blocks_for(imax(p.out.h, p.out.w)), 2), kThreads, 0, stream,
         work.rows, work.columns);
  const int64_t planes = planes_of(p), channels = channels_of(p);
  for (int64_t begin = 0; begin < planes; begin += work.planes_at_once) {
    const int64_t count = imin(work.planes_at_once, planes - begin);
    one_axis(work.columns, count * p.in.h, channels, x + begin * volume(p.in) * channels, work.middle,
             stream);
    one_axis(work.rows, count, p.out.w * channels, work.middle, y + begin * volume(p.out) * channels, stream);
  }
}

}  // namespace

void interpolate_weighted_u8(const InterpolateParams& p, const void* x, void* y, void* workspace,
                             void* stream) {
  check_depth(p);
  if (planes_of(p) * channels_of(p) * volume(p.out) == 0) return;
  const uint8_t* from = static_cast<const uint8_t*>(x);
  uint8_t* to = static_cast<uint8_t*>(y);
  is_small(p) ? apply<int32_t>(p, from, to, workspace, stream)
              : apply<int64_t>(p, from, to, workspace, stream);
}

int64_t interpolate_weighted_u8_workspace(const InterpolateParams& p) {
  check_depth(p);
  Arena arena(nullptr);
  if (is_small(p))
    Work<int32_t>(p, arena);
  else
    Work<int64_t>(p, arena);
  return arena.used();
}

}  // namespace cuda
}  // namespace fastops
