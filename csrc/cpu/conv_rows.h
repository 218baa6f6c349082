// A tile of a channels_last convolution: rows are positions, columns are result channels.
#pragma once

#include <cstdint>

#include "conv_tiles.h"

namespace fastops {
namespace cpu {
namespace {

// Where padding points to: channels of a position outside the source.
template <typename W>
alignas(64) const W kZeros[kDirectDepth<W> / kPerWord<W>] = {};

// Positions of the grid, counted over all images: where the first tap finds them in the source, as
// coordinates and as elements from its beginning, and where their result channels are.
template <typename T>
struct RowPositions {
  int64_t count;
  int64_t d[kRowPositions], h[kRowPositions], w[kRowPositions], from[kRowPositions];
  T* to[kRowPositions];
};
template <typename T, typename W>
void find_positions(const Call<T, W>& call, const TapAxes& a, int64_t g, int64_t begin, int64_t end,
                    RowPositions<T>& p) {
  const TapConv& t = call.t;
  const Extent &in = t.source, &out = t.result;
  p.count = end - begin;
  for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
    const int64_t d = source_at(a.d, run.d, 0), h = source_at(a.h, run.h, 0);
    const int64_t in_row = ((n * in.d + d) * in.h + h) * in.w;
    const int64_t out_row = ((n * out.d + result_at(a.d, run.d)) * out.h + result_at(a.h, run.h)) * out.w;
    for (int64_t i = run.column; i < run.column + run.count; ++i) {
      const int64_t at = run.w + i - run.column;
      p.d[i] = d, p.h[i] = h, p.w[i] = source_at(a.w, at, 0);
      p.from[i] = (in_row + p.w[i]) * t.p->groups * t.inner + g * t.inner;
      p.to[i] = call.result + (out_row + result_at(a.w, at)) * t.p->groups * t.outer + g * t.outer;
    }
  });
}

// The rows of one block of k, as they lie in the source: a row of pointers for each tap.
template <typename T, typename W>
void point_rows(const Call<T, W>& call, const TapAxes& a, int64_t g, int64_t begin, int64_t end,
                const Block& b, const W* (&row)[kMaxTapsPerBlock][kRowPositions]) {
  const TapConv& t = call.t;
  const int64_t channels = t.p->groups * t.inner, step = a.w.step * channels;
  for (int64_t tap = b.tap0; tap < b.tap1; ++tap) {
    const Tap at = tap_at(t, a, tap);
    for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
      const int64_t d = source_at(a.d, run.d, at.d), h = source_at(a.h, run.h, at.h);
      const bool in = inside(a.d, d) && inside(a.h, h);
      const Range r = in ? grid_inside(a.w, at.w, run.w, run.w + run.count) : Range{run.w, run.w};
      const int64_t line = ((n * t.source.d + d) * t.source.h + h) * t.source.w;
      const T* from = call.source + (line + source_at(a.w, r.begin, at.w)) * channels + g * t.inner + b.i0;
      const W** to = row[tap - b.tap0] + run.column - run.w;
      for (int64_t w = run.w; w < r.begin; ++w) to[w] = kZeros<W>;
      for (int64_t w = r.begin; w < r.end; ++w)
        to[w] = reinterpret_cast<const W*>(from + (w - r.begin) * step);
      for (int64_t w = r.end; w < run.w + run.count; ++w) to[w] = kZeros<W>;
    });
  }
}

// `taps` neighbouring taps of one position, of which [first, last) lie inside the source.
template <typename T, typename E>
inline void copy_taps(const T* from, E* to, int64_t channels, int64_t taps, int64_t first, int64_t last) {
  if (last - first == taps) return copy_row(from, 1, to, taps * channels);
  zero_row(to, first * channels);
  copy_row(from + first * channels, 1, to + first * channels, (last - first) * channels);
  zero_row(to + last * channels, (taps - last) * channels);
}

// Whether the taps of a row of the kernel, with their channels, are one stretch of the source.
inline bool taps_are_neighbours(const TapConv& t, const TapAxes& a) {
  return a.w.off_step == 1 && t.p->groups == 1;
}

// The rows of one block of k, copied: taps follow each other.
template <typename T, typename W>
void gather_rows(const Call<T, W>& call, const TapAxes& a, const RowPositions<T>& p, const Block& b,
                 const W* (&row)[kMaxTapsPerBlock][kRowPositions], W* gathered) {
  using E = Element<W>;
  const TapConv& t = call.t;
  const int64_t source_channels = t.p->groups * t.inner, channels = b.i1 - b.i0;
  const int64_t stride = kRowStride<Acc<W>> * kPerWord<W>;
  E* copies = reinterpret_cast<E*>(gathered);
  for (int64_t tap = b.tap0, next; tap < b.tap1; tap = next) {
    const Tap at = tap_at(t, a, tap);
    const bool together = taps_are_neighbours(t, a) && channels == t.inner;
    next = together ? imin(b.tap1, tap + a.w.taps - at.w) : tap + 1;
    const int64_t taps = next - tap, d = at.d * a.d.off_step, h = at.h * a.h.off_step,
                  w = at.w * a.w.off_step;
    const T* source = call.source + ((d * t.source.h + h) * t.source.w + w) * source_channels + b.i0;
    for (int64_t i = 0; i < p.count; ++i) {
      const bool in = inside(a.d, p.d[i] + d) && inside(a.h, p.h[i] + h);
      const int64_t first = in ? imin(imax(0, -(p.w[i] + w)), taps) : 0;
      const int64_t last = in ? imax(first, imin(taps, a.w.source - (p.w[i] + w))) : 0;
      copy_taps(source + p.from[i], copies + i * stride + (tap - b.tap0) * channels, channels, taps, first,
                last);
    }
  }
  for (int64_t i = 0; i < p.count; ++i) {
    row[0][i] = gathered + i * kRowStride<Acc<W>>;
    if (elements(b) % kPerWord<W> != 0) copies[i * stride + elements(b)] = E{};
  }
}

// Whether the rows of a block of few channels can be read where they lie, a row of the kernel at a time.
template <typename T, typename W>
bool reads_lines(const TapConv& t, const TapAxes& a, const Block& b) {
  const int64_t taps = b.tap1 - b.tap0;
  return std::is_same_v<T, W> && taps_are_neighbours(t, a) && b.i1 - b.i0 == t.inner && taps > 0 &&
         b.tap0 % a.w.taps == 0 && taps % a.w.taps == 0 && taps / a.w.taps <= kMaxTapsPerBlock;
}

// Those rows; where taps lie beside the source, copies.
template <typename T, typename W>
void point_lines(const Call<T, W>& call, const TapAxes& a, const RowPositions<T>& p, const Block& b,
                 const W* (&row)[kMaxTapsPerBlock][kRowPositions], W* gathered) {
  const TapConv& t = call.t;
  const int64_t taps = a.w.taps, channels = t.inner;
  for (int64_t line = 0; line < (b.tap1 - b.tap0) / taps; ++line) {
    const Tap at = tap_at(t, a, b.tap0 + line * taps);
    const int64_t d = at.d * a.d.off_step, h = at.h * a.h.off_step;
    const T* source = call.source + (d * t.source.h + h) * t.source.w * channels;
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t first = imin(imax(0, -p.w[i]), taps), last = imax(first, imin(taps, a.w.source - p.w[i]));
      if (!inside(a.d, p.d[i] + d) || !inside(a.h, p.h[i] + h)) {
        row[line][i] = kZeros<W>;
      } else if (last - first == taps) {
        row[line][i] = reinterpret_cast<const W*>(source + p.from[i]);
      } else {
        W* copy = gathered + i * kRowStride<Acc<W>> + line * taps * channels;
        copy_taps(source + p.from[i], reinterpret_cast<Element<W>*>(copy), channels, taps, first, last);
        row[line][i] = copy;
      }
    }
  }
}

// Positions [begin, end) of the grid; result channels [o0, o1) of group g. `weights` are that group's
// panels, or null: then the tile packs each where it needs it.
template <typename T, typename W>
void row_tile(const Call<T, W>& call, const TapAxes& a, const W* weights, int64_t g, int64_t begin,
              int64_t end, int64_t o0, int64_t o1, const Scratch<W>& scratch) {
  using A = Acc<W>;
  constexpr int64_t nr = kTileColumns<A>, P = kPerWord<W>;
  const TapConv& t = call.t;
  const Order order = order_of<W>(t, a);
  const bool gather = gathers<T, W>(t), direct = sums_in_result<T>(t, a);
  RowPositions<T> p;
  find_positions(call, a, g, begin, end, p);
  const W* row[kMaxTapsPerBlock][kRowPositions];

  for_each_block<T, W>(t, a, [&](const Block& b) {
    const bool lines = gather && reads_lines<T, W>(t, a, b);
    if (lines)
      point_lines(call, a, p, b, row, scratch.gathered);
    else if (gather)
      gather_rows(call, a, p, b, row, scratch.gathered);
    else
      point_rows(call, a, g, begin, end, b, row);
    const int64_t words = ceil_div(elements(b), P);
    for (int64_t o = o0; o < o1; o += nr) {
      const int64_t width = imin(nr, o1 - o), vectors = ceil_div(width, kLanes<A>);
      const W* panel = scratch.panel;
      if (weights != nullptr)
        panel = weights + (o / nr * order.words + first_word(b, order, P)) * nr;
      else
        pack_panel(t, a, call.unpacked + weight_group(t, g), o, o + width, b, scratch.panel);
      const int64_t lanes = width - (vectors - 1) * kLanes<A>;
      TileTask<T, W> task = {};
      const int64_t taps_together = lines ? a.w.taps : gather ? b.tap1 - b.tap0 : 1;
      task.segments = taps_together > 0 ? (b.tap1 - b.tap0) / taps_together : 1;
      task.next_rows = kRowPositions;
      task.step = 1, task.depth = words / imax(task.segments, 1);
      task.panel = panel, task.panel_stride = nr;
      task.first = b.first, task.last = b.last;
      task.bias = call.bias + g * call.channels_stride + o;
      task.sum_lanes = direct ? lanes : kLanes<A>, task.out_lanes = lanes;
      for (int64_t m0 = 0; m0 < p.count; m0 += kTileRows) {
        const int64_t rows = imin(kTileRows, p.count - m0);
        for (int64_t m = 0; m < rows; ++m) {
          task.out[m] = p.to[m0 + m] + o;
          task.sums[m] = direct ? reinterpret_cast<A*>(task.out[m])
                                : scratch.sums + (m0 + m) * kPlaneStride<A> + (o - o0);
        }
        task.rows = row[0] + m0;
        run_tile(rows, vectors, task);
      }
    }
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
