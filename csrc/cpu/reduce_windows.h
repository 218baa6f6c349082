// y = a reduction of x over windows: what average and max pooling (without positions) share.
//
// An Op has identity<A>() and combine(a, b) for scalars and vectors. A Finish turns reduced windows into
// outputs: after start_columns(ow0, ow1) and start_row(od, oh), in either order, finish(value, o) does so
// for the windows ow0 + o, ow0 + o + 1, …, a lane each, and pixel(o) is a function that does so for all
// channels of one window.
//
// contiguous: first down the columns, vectorised over W, then along the row by phases (rows.h), or,
// where windows follow no fixed step, window by window. channels_last: vectorised over channels.
#pragma once

#include "parallel.h"
#include "reduce_pixels.h"

namespace fastops {
namespace cpu {
namespace {

template <typename Op, typename T>
inline Vec<Acc<T>> reduce_column(const Taps<T>& rows, int64_t column, int64_t count) {
  using V = Vec<Acc<T>>;
  const V identity = broadcast(Op::template identity<Acc<T>>());
  V value[1] = {identity};
  if (rows.depth * rows.height <= kPlainTaps) {
    for (int64_t d = 0; d < rows.depth; ++d) {
      const T* p = rows.first + d * rows.depth_step + column;
      for (int64_t h = 0; h < rows.height; ++h, p += rows.height_step)
        value[0] = Op::combine(value[0], load_some(p, count));
    }
    return value[0];
  }
  Pairs<Op, V, 1> pairs;
  for (int64_t d = 0; d < rows.depth; ++d)
    for (int64_t h = 0; h < rows.height; h += kRun) {
      const T* p = rows.first + d * rows.depth_step + h * rows.height_step + column;
      value[0] = identity;
      for (int64_t i = 0; i < imin(kRun, rows.height - h); ++i, p += rows.height_step)
        value[0] = Op::combine(value[0], load_some(p, count));
      pairs.add(value);
    }
  pairs.result(value);
  return value[0];
}

// Reduces n elements, `step` apart.
template <typename Op, typename T>
inline Acc<T> reduce_span(const T* x, int64_t n, int64_t step) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>, run = 8 * 4 * lanes;
  A value[1] = {Op::template identity<A>()};
  int64_t i = 0;
  if (step == 1 && n >= lanes) {
    // Up to the last whole vector before `end`.
    const auto vectors = [&](int64_t end) {
      const Vec<A> identity = broadcast(Op::template identity<A>());
      Vec<A> parts[4] = {identity, identity, identity, identity};
      for (; i + 4 * lanes <= end; i += 4 * lanes)
        for (int64_t u = 0; u < 4; ++u) parts[u] = Op::combine(parts[u], load(x + i + u * lanes));
      for (; i + lanes <= end; i += lanes) parts[0] = Op::combine(parts[0], load(x + i));
      return Op::combine(Op::combine(parts[0], parts[1]), Op::combine(parts[2], parts[3]));
    };
    Vec<A> all[1] = {vectors(imin(n, run))};
    if (n > run) {
      Pairs<Op, Vec<A>, 1> pairs;
      pairs.add(all);
      while (i + lanes <= n) {
        all[0] = vectors(imin(n, i + run));
        pairs.add(all);
      }
      pairs.result(all);
    }
    for (int64_t lane = 0; lane < lanes; ++lane) value[0] = Op::combine(value[0], A(all[0][lane]));
  }
  if (n - i <= kPlainTaps) {
    for (; i < n; ++i) value[0] = Op::combine(value[0], to_acc(x[i * step]));
    return value[0];
  }
  Pairs<Op, A, 1> pairs;
  while (i < n) {
    value[0] = Op::template identity<A>();
    for (const int64_t end = imin(n, i + kRun); i < end; ++i)
      value[0] = Op::combine(value[0], to_acc(x[i * step]));
    pairs.add(value);
  }
  pairs.result(value);
  return value[0];
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
      const Taps<T> rows = rows_of(p, x, 1, od, oh);
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
    const Taps<T> rows = rows_of(p, x, 1, od, oh);
    if (columns_first) {
      for_vectors<T>(0, p.in.w, [&](int64_t j, int64_t count) {
        store_some(row + j, reduce_column<Op>(rows, j, count), count);
      });
    }
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      A value = Op::template identity<A>();
      const AxisTaps columns = axis_taps(axis_w(p), ow);
      if (columns_first && columns.count <= kPlainTaps) {
        for (int64_t k = 0; k < columns.count; ++k)
          value = Op::combine(value, row[columns.first + k * p.dilation.w]);
      } else if (columns_first) {
        value = reduce_span<Op>(row + columns.first, columns.count, p.dilation.w);
      } else {
        const Taps<T> taps = window_of(rows, columns, 1);
        Pairs<Op, A, 1> pairs;
        for (int64_t d = 0; d < taps.depth; ++d)
          for (int64_t h = 0; h < taps.height; ++h) {
            A span[1] = {reduce_span<Op>(taps.first + d * taps.depth_step + h * taps.height_step, taps.width,
                                         taps.width_step)};
            pairs.add(span);
          }
        A all[1] = {value};
        if (!pairs.empty()) pairs.result(all);
        value = all[0];
      }
      finish.start_columns(ow, ow + 1);
      y[r * p.out.w + ow] = from_acc<T>(finish(broadcast(value), 0)[0]);
    }
  }
}

// All of a plane, a plane to an output: blocks of planes [begin, end).
template <typename Op, typename T, typename Finish>
void reduce_planes(const T* x, T* y, int64_t size, int64_t begin, int64_t end, Finish finish) {
  finish.start_row(0, 0);
  finish.start_columns(0, 1);
  const auto finish_pixel = finish.pixel(0);
  for (int64_t plane = begin; plane < end; ++plane)
    y[plane] = from_acc<T>(finish_pixel(broadcast(reduce_span<Op>(x + plane * size, size, 1)))[0]);
}

template <typename Op, typename T, typename Finish>
void reduce_windows(const PoolParams& p, const T* x, T* y, int threads, Finish finish) {
  const int64_t rows = p.out.d * p.out.h, in_plane = volume(p.in);
  if (rows * p.out.w == 0) return;  // adaptive, to nothing
  if (p.channels_last) {
    const int64_t block = pixel_rows_per_task(p.n, rows, p.out.w * p.c, threads),
                  blocks = ceil_div(rows, block);
    const T* x_end = x + p.n * in_plane * p.c;
    parallel_for(threads, p.n * blocks, block * p.out.w * p.c * 4, [&](int64_t task, int) {
      const int64_t n = task / blocks, begin = task % blocks * block;
      reduce_pixels<Op>(p, x + n * in_plane * p.c, y + n * rows * p.out.w * p.c, begin,
                        imin(begin + block, rows), x_end, finish);
    });
    return;
  }
  if (p.adaptive && volume(p.out) == 1) {
    const int64_t planes = p.n * p.c, block = rows_per_task(planes, in_plane),
                  blocks = ceil_div(planes, block);
    parallel_for(threads, blocks, block * in_plane, [&](int64_t task, int) {
      reduce_planes<Op>(x, y, in_plane, task * block, imin((task + 1) * block, planes), finish);
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
