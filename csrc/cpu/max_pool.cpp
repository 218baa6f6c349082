// Max pooling on the CPU: values alone, or values and where they were found.
#include "../pool.h"
#include "dispatch.h"
#include "positions.h"
#include "reduce_windows.h"

namespace fastops {
namespace cpu {
namespace {

struct Max {
  template <typename A>
  static constexpr A identity() {
    return -static_cast<A>(INFINITY);
  }
  // The larger one; NaN wins.
  template <typename V>
  static inline V combine(V a, V b) {
    const V larger = b > a ? b : a;  // a, where either is NaN
    return b == b ? larger : b;
  }
};

struct Keep {
  void start_columns(int64_t, int64_t) {}
  void start_row(int64_t, int64_t) {}
  template <typename V>
  V operator()(V v, int64_t) const {
    return v;
  }
  auto pixel(int64_t) const {
    return [](auto v) { return v; };
  }
};

// ---- with positions ------------------------------------------------------------------------------

// Positions are tracked relative to the window's (or the row of windows') first row, in lanes as wide as
// the values. Places outside the input come after all others.
constexpr int32_t kNowhere = 1 << 30;

// A running maximum, of vectors or scalars, and where it is.
template <typename V, typename I>
struct Best {
  V value;
  I where;
};

// Takes an element that comes later in raster order: ties leave the first, NaN takes the last.
template <typename V, typename I>
inline void update(Best<V, I>& best, V v, I where) {
  const auto wins = (v > best.value) | (v != v);
  best.value = wins ? v : best.value;
  best.where = wins ? where : best.where;
}
// Takes an element that may come earlier or later: the same rule, in any order of updates.
template <typename V, typename I>
inline void merge(Best<V, I>& best, V v, I where) {
  const auto wins = (v > best.value) | ((v == best.value) & (where < best.where)) |
                    ((v != v) & ((best.value == best.value) | (where > best.where)));
  best.value = wins ? v : best.value;
  best.where = wins ? where : best.where;
}

// The best of each column of some rows; `where` counts from the first row.
template <typename T>
inline Best<Vec<Acc<T>>, Mask<Acc<T>>> best_of_column(const Taps<T>& rows, int64_t column, int64_t count) {
  using A = Acc<T>;
  Best<Vec<A>, Mask<A>> best{broadcast(Max::identity<A>()), Mask<A>{}};
  for (int64_t d = 0; d < rows.depth; ++d)
    for (int64_t h = 0; h < rows.height; ++h) {
      const int64_t from = d * rows.depth_step + h * rows.height_step;
      const Vec<A> v = load_some(rows.first + from + column, count);
      update(best, v, Mask<A>{} + static_cast<LaneNumber<A>>(from));
    }
  if (rows.depth * rows.height == 0) best.where += kNowhere;
  return best;
}

// Position of the element (od, oh, column 0)'s windows' first row.
template <typename T>
int64_t first_row(const Taps<T>& rows, const T* plane) {
  return rows.first - plane;
}

// Output rows [begin, end) of a contiguous plane.
template <typename T, typename P>
void max_rows(const PoolParams& p, const Columns& columns, const T* x, T* y, P* positions, int64_t begin,
              int64_t end) {
  using A = Acc<T>;
  using I = LaneNumber<A>;
  RowBuffer<A> row_buffer, phase_buffer;
  RowBuffer<I> row_where, phase_where;
  const int64_t reach = (p.kernel.w - 1) * p.dilation.w;
  for (int64_t ow0 = 0; ow0 < p.out.w; ow0 += columns.tile) {
    const int64_t windows = imin(columns.tile, p.out.w - ow0);
    const int64_t first = ow0 * p.stride.w - p.pad.w, span = (windows - 1) * p.stride.w + reach + 1;
    const Range inside = {imin(imax(first, 0), p.in.w), imin(first + span, p.in.w)};
    const auto outside = [&](int64_t j) {
      row_buffer.data[j] = Max::identity<A>();
      row_where.data[j] = kNowhere;
    };
    for (int64_t j = 0; j < inside.begin - first; ++j) outside(j);
    for (int64_t j = imax(inside.end - first, 0); j < span; ++j) outside(j);
    for (int64_t r = begin; r < end; ++r) {
      const Taps<T> rows = rows_of(p, x, 1, r / p.out.h, r % p.out.h);
      for_vectors<T>(inside.begin, inside.end, [&](int64_t j, int64_t count) {
        const auto best = best_of_column(rows, j, count);
        store_some(row_buffer.data + j - first, best.value, count);
        store_lanes(row_where.data + j - first, best.where, count);
      });
      const A* values = row_buffer.data;
      const I* wheres = row_where.data;
      if (columns.stride > 1) {
        const int64_t slots = windows + columns.reach;
        split_phases<A, Vec<A>>(columns, values, slots, phase_buffer.data);
        split_phases<I, Mask<A>>(columns, wheres, slots, phase_where.data);
        values = phase_buffer.data;
        wheres = phase_where.data;
      }
      const int64_t row_start = first_row(rows, x) + first;
      T* out = y + r * p.out.w + ow0;
      P* out_positions = positions + r * p.out.w + ow0;
      for_vectors<T>(0, windows, [&](int64_t o, int64_t count) {
        Best<Vec<A>, Mask<A>> best{load(values + columns.offset[0] + o),
                                   load_bits<Mask<A>>(wheres + columns.offset[0] + o)};
        for (int64_t k = 1; k < columns.taps; ++k)
          merge(best, load(values + columns.offset[k] + o),
                load_bits<Mask<A>>(wheres + columns.offset[k] + o) + static_cast<I>(k * p.dilation.w));
        store_some(out + o, best.value, count);
        const Mask<A> some = best.where < kNowhere;
        const Mask<A> where = best.where + lane_numbers<A>() * static_cast<I>(p.stride.w);
        store_positions(out_positions + o, where, some, row_start + o * p.stride.w, count);
      });
    }
  }
}

// The same, window by window: adaptive windows, and windows too large for row buffers.
template <typename T, typename P>
void max_rows_by_window(const PoolParams& p, const T* x, T* y, P* positions, int64_t begin, int64_t end) {
  using A = Acc<T>;
  using I = LaneNumber<A>;
  RowBuffer<A> row;
  RowBuffer<I> row_where;
  const bool columns_first = p.in.w <= kRowElements && (p.adaptive || p.kernel.w >= p.stride.w);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t od = r / p.out.h, oh = r % p.out.h;
    const Taps<T> rows = rows_of(p, x, 1, od, oh);
    if (columns_first)
      for_vectors<T>(0, p.in.w, [&](int64_t j, int64_t count) {
        const auto best = best_of_column(rows, j, count);
        store_some(row.data + j, best.value, count);
        store_lanes(row_where.data + j, best.where, count);
      });
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      const Taps<T> taps = window_of(rows, axis_taps(axis_w(p), ow), 1);
      Best<A, int64_t> best{Max::identity<A>(), kNowhere};
      if (columns_first && rows.depth * rows.height > 0) {
        const int64_t from = taps.first - rows.first;
        for (int64_t k = 0; k < taps.width; ++k) {
          const int64_t j = from + k * taps.width_step;
          merge(best, row.data[j], static_cast<int64_t>(row_where.data[j]) + j);
        }
      } else {
        for (int64_t d = 0; d < taps.depth; ++d)
          for (int64_t h = 0; h < taps.height; ++h)
            for (int64_t w = 0; w < taps.width; ++w) {
              const T* from = taps.first + d * taps.depth_step + h * taps.height_step + w * taps.width_step;
              merge(best, to_acc(*from), static_cast<int64_t>(from - rows.first));
            }
      }
      y[r * p.out.w + ow] = from_acc<T>(best.value);
      positions[r * p.out.w + ow] =
          static_cast<P>(best.where < kNowhere ? first_row(rows, x) + best.where : -1);
    }
  }
}

// `vectors` vectors of channels of one window of a channels_last image.
template <int vectors, bool guarded, typename T>
inline void max_pixel(const PoolParams& p, const Taps<T>& taps, int64_t c, const T* x_end,
                      Best<Vec<Acc<T>>, Mask<Acc<T>>> (&best)[vectors]) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  for (auto& b : best) b = {broadcast(Max::identity<A>()), Mask<A>{}};
  for (int64_t d = 0; d < taps.depth; ++d)
    for (int64_t h = 0; h < taps.height; ++h) {
      const T* from = taps.first + d * taps.depth_step + h * taps.height_step + c;
      Mask<A> where =
          Mask<A>{} + static_cast<LaneNumber<A>>((d * p.dilation.d * p.in.h + h * p.dilation.h) * p.in.w);
      for (int64_t w = 0; w < taps.width;
           ++w, from += taps.width_step, where += static_cast<LaneNumber<A>>(p.dilation.w))
        for (int u = 0; u < vectors; ++u)
          update(best[u], guarded ? load_before(from + u * lanes, x_end) : load(from + u * lanes), where);
    }
}

// Output rows [begin, end) of a channels_last image.
template <typename T, typename P>
void max_pixels(const PoolParams& p, const T* x, T* y, P* positions, int64_t begin, int64_t end,
                const T* x_end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const T* y_end = y + end * p.out.w * p.c;
  const P* positions_end = positions + end * p.out.w * p.c;
  ColumnTable<AxisTaps> columns;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t od = r / p.out.h, oh = r % p.out.h;
    const Taps<T> rows = rows_of(p, x, p.c, od, oh);
    const int64_t row = axis_taps(axis_d(p), od).first * p.in.h + axis_taps(axis_h(p), oh).first;
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      columns.prepare(ow, p.out.w, [&](int64_t o) { return axis_taps(axis_w(p), o); });
      const Taps<T> taps = window_of(rows, columns[ow], p.c);
      const bool some = taps.depth * taps.height * taps.width > 0;
      const int64_t base = some ? row * p.in.w + columns[ow].first : -1;
      T* out = y + (r * p.out.w + ow) * p.c;
      P* out_positions = positions + (r * p.out.w + ow) * p.c;
      int64_t c = 0;
      for (; c + 4 * lanes <= p.c; c += 4 * lanes) {
        Best<Vec<A>, Mask<A>> best[4];
        max_pixel<4, false>(p, taps, c, x_end, best);
        for (int u = 0; u < 4; ++u) {
          store(out + c + u * lanes, best[u].value);
          store_positions(out_positions + c + u * lanes, best[u].where, base, lanes);
        }
      }
      for (; c < p.c; c += lanes) {
        Best<Vec<A>, Mask<A>> best[1];
        max_pixel<1, true>(p, taps, c, x_end, best);
        store_before(out + c, best[0].value, y_end);
        store_positions(out_positions + c, best[0].where, base,
                        imin(lanes, positions_end - (out_positions + c)));
      }
    }
  }
}

template <typename T, typename P>
void max_pool_with_positions(const PoolParams& p, const T* x, T* y, P* positions, int threads) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
  const int64_t rows = p.out.d * p.out.h, in_plane = volume(p.in) * channels, width = p.out.w * channels;
  const int64_t block = p.channels_last ? pixel_rows_per_task(p.n, rows, width, threads)
                                        : rows_per_task(rows, width),
                blocks = ceil_div(rows, block);
  const Columns columns(axis_w(p));
  const int64_t work = block * imax(width, p.channels_last ? 0 : p.in.w) * 4;
  parallel_for(threads, planes * blocks, work, [&](int64_t task, int) {
    const int64_t plane = task / blocks, begin = task % blocks * block, end = imin(begin + block, rows);
    const T* from = x + plane * in_plane;
    T* to = y + plane * rows * width;
    P* to_positions = positions + plane * rows * width;
    if (p.channels_last)
      max_pixels(p, from, to, to_positions, begin, end, x + planes * in_plane);
    else if (columns.tile >= 1)
      max_rows(p, columns, from, to, to_positions, begin, end);
    else
      max_rows_by_window(p, from, to, to_positions, begin, end);
  });
}

}  // namespace

template <>
void max_pool<kIsa>(const PoolParams& params, const void* x, void* y, void* positions, int threads) {
  const PoolParams p = simplified(params);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    if (positions == nullptr)
      reduce_windows<Max>(p, from, to, threads, Keep{});
    else
      dispatch_positions(p.positions, [&](auto index) {
        using P = typename decltype(index)::type;
        max_pool_with_positions(p, from, to, static_cast<P*>(positions), threads);
      });
  });
}

}  // namespace cpu
}  // namespace fastops
