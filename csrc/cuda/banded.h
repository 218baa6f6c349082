// Banded matrices on the GPU: interpolation along one axis as a table, in the workspace, of the sources
// and weights of each result. Coordinates need fp64, of which most GPUs have little: so small kernels
// make the tables at the start of a call, once per axis and not once per element, and the kernels that
// do the work read them. The adjoint's table is the forward's, transposed.
#pragma once

#include "../arena.h"
#include "../interpolate.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

template <typename I>
struct alignas(2 * sizeof(I)) Span {
  I begin, count;
};

// result[r] = Σ_k weight[r · per_result + k · per_tap] · source[span[r].begin + k], k < span[r].count.
// Neighbouring threads tend to have neighbouring results: so the weights of one tap lie side by side,
// but for kernels that load all the weights of a result at once (`together`).
template <typename A, typename I>
struct Banded {
  I results = 0, sources = 0;
  int64_t taps = 0;  // room for so many
  int64_t per_result = 1, per_tap = 0;
  Span<I>* span = nullptr;
  A* weight = nullptr;

  Banded() = default;
  Banded(int64_t results_, int64_t sources_, int64_t taps_, bool together, Arena& arena)
      : results(static_cast<I>(results_)),
        sources(static_cast<I>(sources_)),
        taps(taps_),
        per_result(together ? taps_ : 1),
        per_tap(together ? 1 : results_),
        span(arena.take<Span<I>>(results_)),
        weight(arena.take<A>(results_ * taps_)) {}
};

// The number of neighbouring threads that share a result: a power of two, at most a warp.
inline int lanes_for(int64_t taps) {
  int lanes = 1;
  while (lanes < 32 && lanes < taps) lanes *= 2;
  return lanes;
}

// ---- the forward's table -------------------------------------------------------------------------

// One axis, and the table to make of it. Unfolded: every output has all the taps of the filter (no
// antialias, then); begin may be negative, and whoever reads clamps positions to the input.
template <typename A, typename I>
struct Fill {
  SampleAxis axis;
  Banded<A, I> table;
  int lanes;
  bool unfolded;
  A* largest;  // null, or: the largest weight that each warp has made, or 0
};

constexpr int kMostMaxima = 512;  // warps of the grid where `largest` is asked for

template <typename A, typename I>
__device__ inline void fill(const Fill<A, I>& f) {
  const SampleAxis& a = f.axis;
  const int lane = threadIdx.x % f.lanes, team = threadIdx.x / f.lanes, teams = kThreads / f.lanes;
  A largest = 0;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < a.out; first += int64_t{gridDim.x} * teams) {
    const int64_t o = first + team;
    auto t = taps_of(a, imin(o, a.out - 1));
    const int64_t count = f.unfolded ? f.table.taps : imin(imax(t.end - t.begin, 0), f.table.taps);
    if (a.antialias) {
      // normalise() by several threads.
      double sum = 0;
      for (int64_t k = lane; k < count; k += f.lanes) sum += tap_weight(a, t, k);
      for (int distance = f.lanes / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(~0u, sum, distance);
      t.scale = sum != 0.0 ? 1.0 / sum : 1.0;
    }
    if (o >= a.out) continue;
    if (lane == 0) f.table.span[o] = {static_cast<I>(f.unfolded ? t.first : t.begin), static_cast<I>(count)};
    for (int64_t k = lane; k < count; k += f.lanes) {
      const A w = static_cast<A>(f.unfolded ? unfolded_weight(a, t, k) : tap_weight(a, t, k));
      f.table.weight[o * f.table.per_result + k * f.table.per_tap] = w;
      largest = w > largest ? w : largest;
    }
  }
  if (f.largest == nullptr) return;
  for (int distance = 16; distance > 0; distance /= 2) {
    const A other = __shfl_xor_sync(~0u, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) f.largest[(blockIdx.x * kThreads + threadIdx.x) / 32] = largest;
}

template <typename A, typename I>
__global__ void fill_kernel(Fill<A, I> rows, Fill<A, I> columns) {
  if (blockIdx.y == 0)
    fill(rows);
  else
    fill(columns);
}

// Makes both tables. Returns how many maxima there are per axis, where they are asked for.
template <typename A, typename I>
int fill_tables(const char* name, Fill<A, I> rows, Fill<A, I> columns, void* stream) {
  rows.lanes = lanes_for(rows.table.taps);
  columns.lanes = lanes_for(columns.table.taps);
  const int64_t work = imax(rows.axis.out * rows.lanes, columns.axis.out * columns.lanes);
  unsigned blocks = blocks_for(work);
  if (rows.largest) blocks = imin(blocks, kMostMaxima / (kThreads / 32));
  launch(name, fill_kernel<A, I>, dim3(blocks, 2), kThreads, 0, stream, rows, columns);
  return static_cast<int>(blocks) * (kThreads / 32);
}

// ---- and its transpose ---------------------------------------------------------------------------

// The first output whose taps begin, or end, beyond input i. Neither ever decreases.
template <bool end, typename I>
__device__ inline I first_beyond(const Span<I>* span, I outputs, I i) {
  I low = 0, high = outputs;
  while (low < high) {
    const I middle = low + (high - low) / 2;
    const Span<I> s = span[middle];
    if (s.begin + (end ? s.count : 0) > i)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// The outputs that read an input are neighbours, and are summed in their order.
template <typename A, typename I>
__device__ inline void transpose(const Banded<A, I>& forward, const Banded<A, I>& m, int lanes) {
  const int lane = threadIdx.x % lanes;
  for (int64_t index = first_item(); index < int64_t{m.results} * lanes; index += item_stride()) {
    const I i = static_cast<I>(index / lanes);
    const I begin = first_beyond<true>(forward.span, forward.results, i);
    const I readers = first_beyond<false>(forward.span, forward.results, i) - begin;
    const I count = readers < static_cast<I>(m.taps) ? readers : static_cast<I>(m.taps);
    if (lane == 0) m.span[i] = {begin, count};
    for (I k = lane; k < count; k += lanes) {
      const int64_t o = begin + k, tap = i - forward.span[o].begin;
      m.weight[i * m.per_result + k * m.per_tap] =
          forward.weight[o * forward.per_result + tap * forward.per_tap];
    }
  }
}

template <typename A, typename I>
__global__ void transpose_kernel(Banded<A, I> forward_rows, Banded<A, I> rows, int row_lanes,
                                 Banded<A, I> forward_columns, Banded<A, I> columns, int column_lanes) {
  if (blockIdx.y == 0)
    transpose(forward_rows, rows, row_lanes);
  else
    transpose(forward_columns, columns, column_lanes);
}

template <typename A, typename I>
void transpose_tables(const char* name, const Banded<A, I>& forward_rows, const Banded<A, I>& rows,
                      const Banded<A, I>& forward_columns, const Banded<A, I>& columns, void* stream) {
  const int row_lanes = lanes_for(rows.taps), column_lanes = lanes_for(columns.taps);
  const int64_t work = imax(int64_t{rows.results} * row_lanes, int64_t{columns.results} * column_lanes);
  launch(name, transpose_kernel<A, I>, dim3(blocks_for(work), 2), kThreads, 0, stream, forward_rows, rows,
         row_lanes, forward_columns, columns, column_lanes);
}

// ---- how the kernels that read tables share out their work ---------------------------------------

// A thread has one item (an element or a pack) of a plane's result, in every `chunks`-th plane: what
// it knows of the item serves several planes.
template <typename I>
struct Spread {
  int64_t planes;
  I items, chunks;
  Divider<I> by_items;

  // Threads in all: 8 times what a large GPU holds at once, so that an uneven last round costs little.
  static constexpr int64_t kMany = int64_t{1} << 21;

  // A thread takes `together` planes at a time.
  Spread(int64_t planes_, int64_t items_, int64_t together)
      : planes(planes_), items(static_cast<I>(items_)), chunks(1), by_items(items_) {
    if (planes == 0 || items_ == 0) return;
    const int64_t wanted = imin(ceil_div(kMany, items_), planes);
    chunks = static_cast<I>(ceil_div(planes, round_up(ceil_div(planes, wanted), together)));
  }
  int64_t work() const { return int64_t{items} * chunks; }
};

// Result (row, column) of a plane, and the group of channels of a thread.
template <typename I>
struct Site {
  I chunk, item, row, column, group;
};

template <typename I>
struct Sites {
  Spread<I> spread;
  I groups;
  Divider<I> by_groups, by_columns;
  I columns;

  Sites(int64_t planes, int64_t rows, int64_t columns_, int64_t channel_groups, int64_t together)
      : spread(planes, rows * columns_ * channel_groups, together),
        groups(static_cast<I>(channel_groups)),
        by_groups(channel_groups),
        by_columns(columns_),
        columns(static_cast<I>(columns_)) {}

  __device__ Site<I> operator()(int64_t index) const {
    Site<I> s;
    s.chunk = spread.by_items(static_cast<I>(index));
    s.item = static_cast<I>(index) - s.chunk * spread.items;
    const I pixel = by_groups(s.item);
    s.group = s.item - pixel * groups;
    s.row = by_columns(pixel);
    s.column = pixel - s.row * columns;
    return s;
  }
};

inline int64_t planes_of(const InterpolateParams& p) { return p.channels_last ? p.n : p.n * p.c; }
inline int64_t channels_of(const InterpolateParams& p) { return p.channels_last ? p.c : 1; }

inline void check_depth(const InterpolateParams& p) {
  if (p.in.d != 1 || p.out.d != 1)
    throw std::invalid_argument("fastops: weighted interpolation is 2-d so far; the depth must be 1");
}

// Between two passes there is an intermediate result. It is made for so many planes at a time that
// it stays in the L2 cache, and that no workspace grows with the batch.
constexpr int64_t kIntermediateBytes = int64_t{16} << 20;
inline int64_t planes_at_once(int64_t planes, int64_t plane_bytes) {
  return imax(imin(planes, kIntermediateBytes / imax(plane_bytes, 1)), 1);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
