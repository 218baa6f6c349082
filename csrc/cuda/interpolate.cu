// Weighted interpolation (linear, cubic, Lanczos; with and without antialiasing) on the GPU, forward
// and adjoint. Both apply a banded matrix (banded.h) to the rows and another one to the columns: the
// adjoint gathers too, so there are no atomics, and the same bits each run.
//
// With few taps one kernel applies both. With many, one pass applies the first, and another one the
// second, to what the first left in the workspace as accumulators.
#include "banded.h"

namespace fastops {
namespace cuda {
namespace {

// ---- which kernels serve a call: pure functions of the params ------------------------------------

enum class Order { kDirect, kRowsFirst, kColumnsFirst };

struct Schedule {
  Order order;
  bool all_taps;   // direct, with the number of taps known at compile time
  bool small;      // indices inside a plane are below 2³¹
  int64_t middle;  // elements of a plane between two passes
  int64_t planes_at_once;
};

// Sources of a result, on average.
double mean_taps(const SampleAxis& a, bool adjoint) {
  const double reads = reach(a) < double(a.in) ? reach(a) : double(a.in);
  return adjoint ? reads * double(a.out) / double(a.in) : reads;
}

// Counts accesses to the caches. Direct: th · tw reads for a result, and 1 write. In two passes, rows
// first: th reads for each of the elements between, 4 more to write and read back an accumulator (it
// is wider than an element), tw reads for a result, and its write with the latency of one more kernel.
// A pass down rows, and every pass over vectors of channels, moves 16 bytes at a time; among single
// elements that saves three quarters of the reads, among vectors the intermediate costs twice an
// element.
Schedule schedule(const InterpolateParams& p, bool adjoint) {
  const Extent from = adjoint ? p.out : p.in, to = adjoint ? p.in : p.out;
  const int64_t channels = channels_of(p);
  const int64_t width = p.dtype == DType::kF64 ? 2 : p.dtype == DType::kF32 ? 4 : 8;
  const bool vectors = p.channels_last && p.c % width == 0;  // whatever the addresses are
  const double down = vectors ? 1 : 0.25, again = vectors ? 2 : 1;
  const double th = mean_taps(axis_h(p), adjoint), tw = mean_taps(axis_w(p), adjoint);
  const double results = double(to.h) * double(to.w);
  const double direct = results * (th * tw + 1);
  const double rows_first = double(to.h) * double(from.w) * (th * down + 4) + results * (tw * again + 2);
  const double columns_first =
      double(from.h) * double(to.w) * (tw + 4) + results * (th * (vectors ? 2 : down) + 2);
  const double two = rows_first < columns_first ? rows_first : columns_first;

  Schedule s{};
  s.order = !(direct > 1.25 * two)        ? Order::kDirect
            : rows_first <= columns_first ? Order::kRowsFirst
                                          : Order::kColumnsFirst;
  s.middle = channels * (s.order == Order::kDirect      ? 0
                         : s.order == Order::kRowsFirst ? to.h * from.w
                                                        : from.h * to.w);
  constexpr int64_t limit = int64_t{1} << 31;
  s.small = channels * imax(volume(p.in), volume(p.out)) < limit && s.middle < limit;
  s.all_taps = s.order == Order::kDirect && s.small && !adjoint && !p.antialias && volume(p.in) > 0 &&
               p.filter != Filter::kLanczos && !copies(axis_h(p)) && !copies(axis_w(p));
  s.planes_at_once = planes_at_once(planes_of(p), s.middle * (p.dtype == DType::kF64 ? 8 : 4));
  return s;
}

// The tables of a call, and what is between two passes.
template <typename A, typename I>
struct Work {
  Banded<A, I> forward_rows, forward_columns;
  Banded<A, I> rows, columns;  // the adjoint's, or the same
  A* middle;

  Work(const InterpolateParams& p, const Schedule& s, bool adjoint, Arena& arena)
      : forward_rows(forward(axis_h(p), s, arena)),
        forward_columns(forward(axis_w(p), s, arena)),
        rows(adjoint ? transposed(axis_h(p), arena) : forward_rows),
        columns(adjoint ? transposed(axis_w(p), arena) : forward_columns),
        middle(arena.take<A>(s.middle * s.planes_at_once)) {}

  void fill(const InterpolateParams& p, const Schedule& s, bool adjoint, const char* name,
            void* stream) const {
    fill_tables<A, I>(name, {axis_h(p), forward_rows, 0, s.all_taps, nullptr},
                      {axis_w(p), forward_columns, 0, s.all_taps, nullptr}, stream);
    if (adjoint) transpose_tables(name, forward_rows, rows, forward_columns, columns, stream);
  }

 private:
  static Banded<A, I> forward(const SampleAxis& a, const Schedule& s, Arena& arena) {
    return {a.out, a.in, s.all_taps ? filter_width(a.filter) : max_taps_bound(a), s.all_taps, arena};
  }
  static Banded<A, I> transposed(const SampleAxis& a, Arena& arena) {
    return {a.in, a.out, max_readers_bound(a), false, arena};
  }
};

// ---- both axes at once ---------------------------------------------------------------------------

template <int taps, typename I>
__device__ inline void positions_of(I begin, I sources, I step, I (&positions)[taps]) {
#pragma unroll
  for (int k = 0; k < taps; ++k) {
    const I at = begin + k;
    positions[k] = (at < 0 ? 0 : at < sources ? at : sources - 1) * step;
  }
}

// Unfolded tables: a result has `taps` · `taps` sources, all of them at positions clamped to the input.
template <typename T, int width, int taps>
__global__ void all_taps_kernel(Banded<Acc<T>, int32_t> rows, Banded<Acc<T>, int32_t> columns,
                                Sites<int32_t> sites, int64_t work, const Pack<T, width>* __restrict__ x,
                                Pack<T, width>* __restrict__ y) {
  using A = Acc<T>;
  const int32_t line = columns.sources * sites.groups;
  for (int64_t index = first_item(); index < work; index += item_stride()) {
    const Site<int32_t> at = sites(index);
    const auto down = reinterpret_cast<const Pack<A, taps>*>(rows.weight)[at.row];
    const auto along = reinterpret_cast<const Pack<A, taps>*>(columns.weight)[at.column];
    int32_t row[taps], column[taps];
    positions_of(rows.span[at.row].begin, rows.sources, line, row);
    positions_of(columns.span[at.column].begin, columns.sources, sites.groups, column);
    for (int64_t plane = at.chunk; plane < sites.spread.planes; plane += sites.spread.chunks) {
      const Pack<T, width>* from = x + plane * rows.sources * line + at.group;
      A sum[width] = {};
#pragma unroll
      for (int k = 0; k < taps; ++k) {
        A part[width] = {};
#pragma unroll
        for (int l = 0; l < taps; ++l) {
          const Pack<T, width> v = from[row[k] + column[l]];
#pragma unroll
          for (int u = 0; u < width; ++u) part[u] += along.v[l] * to_acc(v.v[u]);
        }
#pragma unroll
        for (int u = 0; u < width; ++u) sum[u] += down.v[k] * part[u];
      }
      Pack<T, width> result;
#pragma unroll
      for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(sum[u]);
      y[plane * sites.spread.items + at.item] = result;
    }
  }
}

// Any tables. Of `together` planes at a time: a weight serves them all, and their reads overlap.
template <typename T, int width, int together, typename I>
__global__ void direct_kernel(Banded<Acc<T>, I> rows, Banded<Acc<T>, I> columns, Sites<I> sites, int64_t work,
                              const Pack<T, width>* __restrict__ x, Pack<T, width>* __restrict__ y) {
  using A = Acc<T>;
  const I line = columns.sources * sites.groups;
  const int64_t in_plane = int64_t{rows.sources} * line, planes = sites.spread.planes;
  for (int64_t index = first_item(); index < work; index += item_stride()) {
    const Site<I> at = sites(index);
    const Span<I> down = rows.span[at.row], along = columns.span[at.column];
    const I start = down.begin * line + along.begin * sites.groups + at.group;
    for (int64_t plane = at.chunk; plane < planes; plane += int64_t{together} * sites.spread.chunks) {
      const Pack<T, width>* from[together];
#pragma unroll
      for (int j = 0; j < together; ++j)
        from[j] = x + imin(plane + int64_t{j} * sites.spread.chunks, planes - 1) * in_plane;
      A sum[together][width] = {};
      const A* down_weight = rows.weight + at.row * rows.per_result;
      for (I k = 0; k < down.count; ++k, down_weight += rows.per_tap) {
        const A of_row = *down_weight;
        const A* weight = columns.weight + at.column * columns.per_result;
        I source = start + k * line;
        for (I l = 0; l < along.count; ++l, source += sites.groups, weight += columns.per_tap) {
          const A w = of_row * *weight;
#pragma unroll
          for (int j = 0; j < together; ++j) {
            const Pack<T, width> v = from[j][source];
#pragma unroll
            for (int u = 0; u < width; ++u) sum[j][u] += w * to_acc(v.v[u]);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const int64_t to = plane + int64_t{j} * sites.spread.chunks;
        Pack<T, width> result;
#pragma unroll
        for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(sum[j][u]);
        if (to < planes) y[to * sites.spread.items + at.item] = result;
      }
    }
  }
}

// ---- one axis at a time --------------------------------------------------------------------------

// x (planes, sources, inner) → y (planes, results, inner). I holds the elements of a plane.
template <typename From, typename To, int width, int together, typename I>
__global__ void band_kernel(Banded<Acc<From>, I> m, I inner, Divider<I> by_inner, Spread<I> spread,
                            int64_t work, const Pack<From, width>* __restrict__ x,
                            Pack<To, width>* __restrict__ y) {
  using A = Acc<From>;
  const int64_t in_plane = int64_t{m.sources} * inner;
  for (int64_t index = first_item(); index < work; index += item_stride()) {
    const I chunk = spread.by_items(static_cast<I>(index));
    const I item = static_cast<I>(index) - chunk * spread.items, result = by_inner(item);
    const Span<I> span = m.span[result];
    const I start = span.begin * inner + item - result * inner;
    for (int64_t plane = chunk; plane < spread.planes; plane += int64_t{together} * spread.chunks) {
      const Pack<From, width>* from[together];
#pragma unroll
      for (int j = 0; j < together; ++j)
        from[j] = x + imin(plane + int64_t{j} * spread.chunks, spread.planes - 1) * in_plane;
      A sum[together][width] = {};
      const A* weight = m.weight + result * m.per_result;
      I source = start;
      for (I k = 0; k < span.count; ++k, source += inner, weight += m.per_tap) {
        const A w = *weight;
#pragma unroll
        for (int j = 0; j < together; ++j) {
          const Pack<From, width> v = from[j][source];
#pragma unroll
          for (int u = 0; u < width; ++u) sum[j][u] += w * to_acc(v.v[u]);
        }
      }
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const int64_t to = plane + int64_t{j} * spread.chunks;
        Pack<To, width> sums;
#pragma unroll
        for (int u = 0; u < width; ++u) sums.v[u] = from_acc<To>(sum[j][u]);
        if (to < spread.planes) y[to * spread.items + item] = sums;
      }
    }
  }
}

// ---- launchers -----------------------------------------------------------------------------------

template <typename From, typename To, int width, int together, typename I>
void launch_band(const char* name, const Banded<Acc<From>, I>& m, int64_t planes, int64_t inner,
                 const void* x, void* y, void* stream) {
  const int64_t groups = inner / width;
  const Spread<I> spread(planes, m.results * groups, together);
  launch(name, band_kernel<From, To, width, together, I>, blocks_for(spread.work()), kThreads, 0, stream, m,
         groups, Divider<I>(groups), spread, spread.work(), static_cast<const Pack<From, width>*>(x),
         static_cast<Pack<To, width>*>(y));
}

// Elements by 16 bytes of the narrower type where runs of `inner` allow, or else of 4 planes at once.
template <typename From, typename To, typename I>
void one_axis(const char* name, const Banded<Acc<From>, I>& m, int64_t planes, int64_t inner, const void* x,
              void* y, void* stream) {
  constexpr int64_t bytes = sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To);
  if (vectors_fit(inner, bytes, address(x) | address(y)))
    launch_band<From, To, 16 / bytes, 1>(name, m, planes, inner, x, y, stream);
  else if (planes >= 4)
    launch_band<From, To, 1, 4>(name, m, planes, inner, x, y, stream);
  else
    launch_band<From, To, 1, 1>(name, m, planes, inner, x, y, stream);
}

template <typename T, typename I>
void two_passes(const char* name, const InterpolateParams& p, const Schedule& s, bool adjoint,
                const Work<Acc<T>, I>& work, const T* x, T* y, void* stream) {
  using A = Acc<T>;
  const int64_t planes = planes_of(p), channels = channels_of(p);
  const int64_t in_plane = volume(adjoint ? p.out : p.in) * channels;
  const int64_t out_plane = volume(adjoint ? p.in : p.out) * channels;
  for (int64_t begin = 0; begin < planes; begin += s.planes_at_once) {
    const int64_t count = imin(s.planes_at_once, planes - begin);
    const T* from = x + begin * in_plane;
    T* to = y + begin * out_plane;
    if (s.order == Order::kRowsFirst) {
      one_axis<T, A>(name, work.rows, count, work.columns.sources * channels, from, work.middle, stream);
      one_axis<A, T>(name, work.columns, count * work.rows.results, channels, work.middle, to, stream);
    } else {
      one_axis<T, A>(name, work.columns, count * work.rows.sources, channels, from, work.middle, stream);
      one_axis<A, T>(name, work.rows, count, work.columns.results * channels, work.middle, to, stream);
    }
  }
}

template <typename T, int width, int together, typename I, typename Kernel>
void launch_direct(const char* name, Kernel kernel, const InterpolateParams& p, const Work<Acc<T>, I>& work,
                   const T* x, T* y, void* stream) {
  const Sites<I> sites(planes_of(p), work.rows.results, work.columns.results, channels_of(p) / width,
                       together);
  const int64_t items = sites.spread.work();
  launch(name, kernel, blocks_for(items), kThreads, 0, stream, work.rows, work.columns, sites, items,
         reinterpret_cast<const Pack<T, width>*>(x), reinterpret_cast<Pack<T, width>*>(y));
}

template <typename T, int width, typename I>
void at_once(const char* name, const InterpolateParams& p, const Schedule& s, const Work<Acc<T>, I>& work,
             const T* x, T* y, void* stream) {
  if constexpr (std::is_same<I, int32_t>::value) {
    if (s.all_taps && p.filter == Filter::kLinear)
      return launch_direct<T, width, 1>(name, all_taps_kernel<T, width, 2>, p, work, x, y, stream);
    if (s.all_taps)
      return launch_direct<T, width, 1>(name, all_taps_kernel<T, width, 4>, p, work, x, y, stream);
  }
  if (width == 1 && planes_of(p) >= 4) {
    constexpr int together = width == 1 ? 4 : 1;
    return launch_direct<T, width, together>(name, direct_kernel<T, width, together, I>, p, work, x, y,
                                             stream);
  }
  launch_direct<T, width, 1>(name, direct_kernel<T, width, 1, I>, p, work, x, y, stream);
}

template <typename T, typename I>
void apply(const char* name, const InterpolateParams& p, const Schedule& s, bool adjoint, const T* x, T* y,
           void* workspace, void* stream) {
  if (planes_of(p) * channels_of(p) * volume(adjoint ? p.in : p.out) == 0) return;
  Arena arena(workspace);
  const Work<Acc<T>, I> work(p, s, adjoint, arena);
  work.fill(p, s, adjoint, name, stream);
  constexpr int width = 16 / sizeof(T);
  if (s.order != Order::kDirect)
    two_passes(name, p, s, adjoint, work, x, y, stream);
  else if (p.channels_last && vectors_fit(p.c, sizeof(T), address(x) | address(y)))
    at_once<T, width>(name, p, s, work, x, y, stream);
  else
    at_once<T, 1>(name, p, s, work, x, y, stream);
}

void apply(const char* name, const InterpolateParams& p, bool adjoint, const void* x, void* y,
           void* workspace, void* stream) {
  check_depth(p);
  const Schedule s = schedule(p, adjoint);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with_index = [&](auto index) {
      using I = typename decltype(index)::type;
      apply<T, I>(name, p, s, adjoint, static_cast<const T*>(x), static_cast<T*>(y), workspace, stream);
    };
    if (s.small)
      with_index(Type<int32_t>{});
    else
      with_index(Type<int64_t>{});
  });
}

int64_t workspace_bytes(const InterpolateParams& p, bool adjoint) {
  check_depth(p);
  const Schedule s = schedule(p, adjoint);
  Arena arena(nullptr);
  const auto count = [&](auto accumulator) {
    using A = typename decltype(accumulator)::type;
    if (s.small)
      Work<A, int32_t>(p, s, adjoint, arena);
    else
      Work<A, int64_t>(p, s, adjoint, arena);
  };
  if (p.dtype == DType::kF64)
    count(Type<double>{});
  else
    count(Type<float>{});
  return arena.used();
}

}  // namespace

void interpolate_weighted(const InterpolateParams& p, const void* x, void* y, void* workspace, void* stream) {
  apply("interpolate_weighted", p, false, x, y, workspace, stream);
}

void interpolate_weighted_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                  void* stream) {
  apply("interpolate_weighted_adjoint", p, true, dy, dx, workspace, stream);
}

int64_t interpolate_weighted_workspace(const InterpolateParams& p) { return workspace_bytes(p, false); }
int64_t interpolate_weighted_adjoint_workspace(const InterpolateParams& p) {
  return workspace_bytes(p, true);
}

}  // namespace cuda
}  // namespace fastops
