// y = a reduction of x over windows: what average and max pooling (without positions) share.
//
// An Op has identity<A>() and combine(a, b) for scalars and vectors. A Finish turns a reduced window
// into an output: start_columns(ow0, ow1) and start_row(od, oh), then finish(value, ow - ow0).
//
// contiguous: first down the columns, vectorised over W, then along the row by phases (rows.h), or,
// where windows follow no fixed step, window by window. channels_last: vectorised over channels.
#pragma once

#include "../pool.h"
#include "parallel.h"
#include "rows.h"

namespace fastops {
namespace cpu {
namespace {

// The elements of one window that lie inside the input.
template <typename T>
struct Taps {
  const T* first;
  int64_t depth, height, width;                 // how many
  int64_t depth_step, height_step, width_step;  // elements from one to the next
};

// The window of output (od, oh, ow) in a plane of `channels` interleaved channels.
template <typename T>
Taps<T> window_of(const PoolParams& p, const T* plane, int64_t channels, int64_t od, int64_t oh, int64_t ow) {
  const PoolAxis ad = axis_d(p), ah = axis_h(p), aw = axis_w(p);
  const Range d = window_taps(ad, od), h = window_taps(ah, oh), w = window_taps(aw, ow);
  const int64_t row = p.in.w * channels;
  const int64_t sd = p.dilation.d, sh = p.dilation.h, sw = p.dilation.w;  // 1 in adaptive windows
  const int64_t id = window_start(ad, od) + d.begin * sd, ih = window_start(ah, oh) + h.begin * sh,
                iw = window_start(aw, ow) + w.begin * sw;
  return {plane + (id * p.in.h + ih) * row + iw * channels,
          imax(d.end - d.begin, 0),
          imax(h.end - h.begin, 0),
          imax(w.end - w.begin, 0),
          sd * p.in.h * row,
          sh * row,
          sw * channels};
}
// The rows of the windows (od, oh, ·): element 0 of the window's first row.
template <typename T>
Taps<T> rows_of(const PoolParams& p, const T* plane, int64_t od, int64_t oh) {
  Taps<T> taps = window_of(p, plane, 1, od, oh, 0);
  const Range w = window_taps(axis_w(p), 0);
  taps.first -= window_start(axis_w(p), 0) + w.begin * p.dilation.w;
  return taps;
}

template <typename Op, typename T>
inline Vec<Acc<T>> reduce_column(const Taps<T>& rows, int64_t column, int64_t count) {
  Vec<Acc<T>> value = broadcast(Op::template identity<Acc<T>>());
  for (int64_t d = 0; d < rows.depth; ++d) {
    const T* p = rows.first + d * rows.depth_step + column;
    for (int64_t h = 0; h < rows.height; ++h, p += rows.height_step)
      value = Op::combine(value, load_some(p, count));
  }
  return value;
}

// Reduces n elements, `step` apart.
template <typename Op, typename T>
inline Acc<T> reduce_span(const T* x, int64_t n, int64_t step) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  A value = Op::template identity<A>();
  int64_t i = 0;
  if (step == 1 && n >= lanes) {
    Vec<A> parts[4];
    for (Vec<A>& v : parts) v = broadcast(value);
    for (; i + 4 * lanes <= n; i += 4 * lanes)
      for (int64_t u = 0; u < 4; ++u) parts[u] = Op::combine(parts[u], load(x + i + u * lanes));
    for (; i + lanes <= n; i += lanes) parts[0] = Op::combine(parts[0], load(x + i));
    const Vec<A> all = Op::combine(Op::combine(parts[0], parts[1]), Op::combine(parts[2], parts[3]));
    for (int64_t lane = 0; lane < lanes; ++lane) value = Op::combine(value, A(all[lane]));
  }
  for (; i < n; ++i) value = Op::combine(value, to_acc(x[i * step]));
  return value;
}

// Output rows [begin, end) of a contiguous plane.
template <typename Op, typename T, typename Finish>
void reduce_rows(const PoolParams& p, const Columns& columns, const T* x, T* y, int64_t begin, int64_t end,
                 Finish finish) {
  using A = Acc<T>;
  constexpr A identity = Op::template identity<A>();
  RowBuffer<A> row_buffer, phase_buffer;
  const int64_t reach = (p.kernel.w - 1) * p.dilation.w;
  for (int64_t ow0 = 0; ow0 < p.out.w; ow0 += columns.tile) {
    const int64_t ow1 = imin(ow0 + columns.tile, p.out.w), windows = ow1 - ow0;
    // Columns [first, first + span) of the input, of which [inside.begin, inside.end) exist.
    const int64_t first = ow0 * p.stride.w - p.pad.w, span = (windows - 1) * p.stride.w + reach + 1;
    const Range inside = {imin(imax(first, 0), p.in.w), imin(first + span, p.in.w)};
    A* row = row_buffer.data;
    for (int64_t j = 0; j < inside.begin - first; ++j) row[j] = identity;
    for (int64_t j = imax(inside.end - first, 0); j < span; ++j) row[j] = identity;
    finish.start_columns(ow0, ow1);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t od = r / p.out.h, oh = r % p.out.h;
      const Taps<T> rows = rows_of(p, x, od, oh);
      for_vectors<T>(inside.begin, inside.end, [&](int64_t j, int64_t count) {
        store_some(row + j - first, reduce_column<Op>(rows, j, count), count);
      });
      const A* phases = row;
      if (columns.stride > 1) {
        split_phases<A, Vec<A>>(columns, row, windows + columns.reach, phase_buffer.data);
        phases = phase_buffer.data;
      }
      finish.start_row(od, oh);
      T* out = y + r * p.out.w + ow0;
      const auto window = [&](int64_t o, int64_t count) {
        Vec<A> value = load(phases + columns.offset[0] + o);
        for (int64_t k = 1; k < columns.taps; ++k)
          value = Op::combine(value, load(phases + columns.offset[k] + o));
        store_some(out + o, finish(value, o), count);
      };
      for_vectors<T>(0, windows, window);
    }
  }
}

// The same, window by window: adaptive windows, and windows too large for row buffers.
template <typename Op, typename T, typename Finish>
void reduce_rows_by_window(const PoolParams& p, const T* x, T* y, int64_t begin, int64_t end, Finish finish) {
  using A = Acc<T>;
  RowBuffer<A> row_buffer;
  A* row = row_buffer.data;
  // Reducing down the columns first pays where windows are narrow, and is possible where a row fits.
  const bool columns_first =
      p.in.w <= kRowElements && p.out.w > 1 && (p.adaptive || p.kernel.w >= p.stride.w);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t od = r / p.out.h, oh = r % p.out.h;
    finish.start_row(od, oh);
    if (columns_first) {
      const Taps<T> rows = rows_of(p, x, od, oh);
      for_vectors<T>(0, p.in.w, [&](int64_t j, int64_t count) {
        store_some(row + j, reduce_column<Op>(rows, j, count), count);
      });
    }
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      A value = Op::template identity<A>();
      if (columns_first) {
        const Range taps = window_taps(axis_w(p), ow);
        const int64_t step = p.dilation.w;
        const A* from = row + window_start(axis_w(p), ow);
        for (int64_t k = taps.begin; k < taps.end; ++k) value = Op::combine(value, from[k * step]);
      } else {
        const Taps<T> taps = window_of(p, x, 1, od, oh, ow);
        for (int64_t d = 0; d < taps.depth; ++d)
          for (int64_t h = 0; h < taps.height; ++h)
            value =
                Op::combine(value, reduce_span<Op>(taps.first + d * taps.depth_step + h * taps.height_step,
                                                   taps.width, taps.width_step));
      }
      finish.start_columns(ow, ow + 1);
      y[r * p.out.w + ow] = from_acc<T>(finish(broadcast(value), 0)[0]);
    }
  }
}

// `vectors` vectors of channels of one window. Channels past the last one are the next pixel's, or 0
// where x ends.
template <typename Op, int vectors, typename T>
inline void reduce_pixel(const Taps<T>& taps, int64_t c, const T* x_end, Vec<Acc<T>> (&value)[vectors]) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  for (Vec<Acc<T>>& v : value) v = broadcast(Op::template identity<Acc<T>>());
  for (int64_t d = 0; d < taps.depth; ++d)
    for (int64_t h = 0; h < taps.height; ++h) {
      const T* p = taps.first + d * taps.depth_step + h * taps.height_step + c;
      for (int64_t w = 0; w < taps.width; ++w, p += taps.width_step)
        for (int u = 0; u < vectors; ++u) value[u] = Op::combine(value[u], load_before(p + u * lanes, x_end));
    }
}

// Output rows [begin, end) of a channels_last image.
template <typename Op, typename T, typename Finish>
void reduce_pixels(const PoolParams& p, const T* x, T* y, int64_t begin, int64_t end, const T* x_end,
                   Finish finish) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const T* y_end = y + end * p.out.w * p.c;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t od = r / p.out.h, oh = r % p.out.h;
    finish.start_row(od, oh);
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      finish.start_columns(ow, ow + 1);
      const Taps<T> taps = window_of(p, x, p.c, od, oh, ow);
      T* out = y + (r * p.out.w + ow) * p.c;
      int64_t c = 0;
      for (; c + 4 * lanes <= p.c; c += 4 * lanes) {
        Vec<A> value[4];
        reduce_pixel<Op>(taps, c, x_end, value);
        for (int u = 0; u < 4; ++u) store(out + c + u * lanes, finish(value[u], 0));
      }
      for (; c < p.c; c += lanes) {
        Vec<A> value[1];
        reduce_pixel<Op>(taps, c, x_end, value);
        store_before(out + c, finish(value[0], 0), y_end);
      }
    }
  }
}

template <typename Op, typename T, typename Finish>
void reduce_windows(const PoolParams& p, const T* x, T* y, int threads, Finish finish) {
  const int64_t rows = p.out.d * p.out.h, in_plane = volume(p.in);
  if (p.channels_last) {
    const int64_t block = rows_per_task(rows, p.out.w * p.c), blocks = ceil_div(rows, block);
    const T* x_end = x + p.n * in_plane * p.c;
    parallel_for(threads, p.n * blocks, block * p.out.w * p.c * 4, [&](int64_t task, int) {
      const int64_t n = task / blocks, begin = task % blocks * block;
      reduce_pixels<Op>(p, x + n * in_plane * p.c, y + n * rows * p.out.w * p.c, begin,
                        imin(begin + block, rows), x_end, finish);
    });
    return;
  }
  const Columns columns(axis_w(p));
  const int64_t block = rows_per_task(rows, p.out.w), blocks = ceil_div(rows, block);
  const int64_t work = block * imax(p.out.w, p.in.w) * 2;
  parallel_for(threads, p.n * p.c * blocks, work, [&](int64_t task, int) {
    const int64_t plane = task / blocks, begin = task % blocks * block, end = imin(begin + block, rows);
    const T* from = x + plane * in_plane;
    T* to = y + plane * rows * p.out.w;
    if (columns.tile >= 1)
      reduce_rows<Op>(p, columns, from, to, begin, end, finish);
    else
      reduce_rows_by_window<Op>(p, from, to, begin, end, finish);
  });
}

// One layout's memory may be another's: a channels_last image of one channel is a plane, and the whole
// of a plane is one window of one row.
inline PoolParams simplified(PoolParams p) {
  if (p.c == 1) p.channels_last = false;
  if (p.adaptive && volume(p.out) == 1) p.in = {1, 1, volume(p.in)};
  return p;
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
