// Weight gradient of a first layer, a few channels wide: of x nothing is packed.
//
//   dw[line][o] = Σ_position x[line][position] · dy[position][o],   a line: a tap and a channel of x
//
// Along a row of positions a line is x itself, at a step: stride · channels elements (NCHW: stride). So lines
// are the rows of the register tile, read where the rows of x lie, padded with zeros, in scratch memory; and
// dy of channels_last is the panel as it lies in memory (that of NCHW is turned over, a row of positions at a
// time). Packing, which 3 channels · 49 taps would do for 64 multiplications each, took a third of the time.
#pragma once

#include "conv_weights.h"
#include "gemm.h"
#include "parallel.h"
#include "tap_conv.h"
#include "turn.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int64_t kFewChannels = 4;
// Positions of a stretch: a tile starts from zero after as many, and 256 × 64 words of dy stay in L2.
template <typename A>
constexpr int64_t kStretch = kTileDepth<A>;
// Parts of all rows of positions, with sums of their own; more than threads, that they may share them out.
constexpr int64_t kLineParts = 16;

struct LineSums {
  int64_t lines, parts;
  int64_t rows;    // of positions, of all images
  int64_t line_w;  // columns of a padded row of x
  int64_t x_rows;  // rows of x under one row of positions: taps along D and H, NCHW: of each channel
  int64_t x_row;   // elements from one to the next
  explicit LineSums(const TapConv& t, const TapAxes& a) {
    const bool last = t.p->channels_last;
    lines = tap_count(a) * t.inner;
    rows = t.p->n * a.d.grid * a.h.grid;
    parts = imin(rows, kLineParts);
    line_w = (a.w.grid - 1) * a.w.step + (a.w.taps - 1) * a.w.off_step + 1;
    x_rows = a.d.taps * a.h.taps * (last ? 1 : t.inner);
    x_row = round_up(line_w * (last ? t.inner : 1), 16);
  }
};

template <typename T, typename W>
bool sums_lines(const ConvParams& p) {
  const TapConv t = tap_conv(p, false);
  return std::is_same_v<T, W> && p.groups == 1 && p.c <= kFewChannels && p.k % kLanes<Acc<T>> == 0 &&
         p.out.w >= 32 && tap_count(tap_axes(t, 0)) >= 9;
}

// Of one thread: rows of x, and of dy turned over.
template <typename A>
int64_t line_scratch(const TapConv& t, const LineSums& s) {
  return round_up(s.x_rows * s.x_row, 16) + (t.p->channels_last ? 0 : kStretch<A> * t.outer);
}
template <typename A>
int64_t line_words(const ConvParams& p, int threads) {
  const TapConv t = tap_conv(p, false);
  const LineSums s(t, tap_axes(t, 0));
  return s.parts * s.lines * t.outer + threads * line_scratch<A>(t, s);
}

// The rows of x under row `row` of positions, from the first tap of the first position to the last of the
// last.
template <typename A>
void fill_x_rows(const TapConv& t, const TapAxes& a, const LineSums& s, const A* x, int64_t row, A* to) {
  const bool last = t.p->channels_last;
  const int64_t n = row / a.h.grid / a.d.grid, gd = row / a.h.grid % a.d.grid, gh = row % a.h.grid;
  const int64_t unit = last ? t.inner : 1, planes = last ? 1 : t.inner;
  const int64_t begin = imin(s.line_w, imax(0, -a.w.off0)),
                end = imax(begin, imin(s.line_w, a.w.source - a.w.off0));
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t td = 0; td < a.d.taps; ++td)
      for (int64_t th = 0; th < a.h.taps; ++th, to += s.x_row) {
        const int64_t d = source_at(a.d, gd, td), h = source_at(a.h, gh, th);
        if (!inside(a.d, d) || !inside(a.h, h)) {
          zero_row(to, s.line_w * unit);
          continue;
        }
        const A* from = x + ((((n * planes + plane) * t.source.d + d) * t.source.h + h) * t.source.w) * unit;
        zero_row(to, begin * unit);
        copy_row(from + (begin + a.w.off0) * unit, 1, to + begin * unit, (end - begin) * unit);
        zero_row(to + end * unit, (s.line_w - end) * unit);
      }
}

// Adds positions [begin, end) of a row to sums[line][o]; dy: those positions' channels.
template <typename A>
void add_lines(const TapConv& t, const TapAxes& a, const LineSums& s, const A* x_rows, const A* dy,
               int64_t begin, int64_t end, bool first, A* sums) {
  constexpr int64_t nr = kTileColumns<A>, L = kLanes<A>;
  const bool last = t.p->channels_last;
  const int64_t unit = last ? t.inner : 1;
  const A* row[kTileRows];
  TileTask<A, A> task = {};
  task.rows = row, task.segments = 1, task.step = a.w.step * unit, task.depth = end - begin;
  task.panel_stride = t.outer, task.first = first, task.sum_lanes = task.out_lanes = L;
  for (int64_t line0 = 0; line0 < s.lines; line0 += kTileRows) {
    const int64_t rows = imin(kTileRows, s.lines - line0);
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t tap = (line0 + m) / t.inner, channel = (line0 + m) % t.inner;
      const int64_t x_row = last ? tap / a.w.taps : channel * a.d.taps * a.h.taps + tap / a.w.taps;
      const int64_t column = tap % a.w.taps * a.w.off_step + begin * a.w.step;
      row[m] = x_rows + x_row * s.x_row + column * unit + (last ? channel : 0);
    }
    for (int64_t o = 0; o < t.outer; o += nr) {
      for (int64_t m = 0; m < rows; ++m) task.sums[m] = sums + (line0 + m) * t.outer + o;
      task.panel = dy + o;
      run_tile(rows, imin(kTileVectors, (t.outer - o) / L), task);
    }
  }
}

template <typename A>
void run_lines(const ConvParams& p, const A* dy, const A* x, A* dw, void* memory, int threads) {
  const TapConv t = tap_conv(p, false);
  const TapAxes a = tap_axes(t, 0);
  const LineSums s(t, a);
  const int64_t size = s.lines * t.outer, plane = volume(t.result);
  A* partial = static_cast<A*>(memory);  // [part][line][o]
  A* scratch = partial + s.parts * size;
  parallel_for(threads, s.parts, ceil_div(s.rows, imax(s.parts, 1)) * a.w.grid * size / 8,
               [&](int64_t part, int slot) {
                 A* x_rows = scratch + slot * line_scratch<A>(t, s);
                 A* turned = x_rows + round_up(s.x_rows * s.x_row, 16);
                 const int64_t begin = part * s.rows / s.parts, end = (part + 1) * s.rows / s.parts;
                 for (int64_t row = begin; row < end; ++row) {
                   fill_x_rows(t, a, s, x, row, x_rows);
                   for (int64_t w = 0; w < a.w.grid; w += kStretch<A>) {
                     const int64_t stop = imin(w + kStretch<A>, a.w.grid);
                     const A* panel = dy + (row * a.w.grid + w) * t.outer;
                     if (!p.channels_last) {
                       const int64_t rows = a.d.grid * a.h.grid;
                       const A* from = dy + row / rows * t.outer * plane + row % rows * a.w.grid + w;
                       turn_over(from, plane, t.outer, stop - w, turned, t.outer);
                       panel = turned;
                     }
                     add_lines(t, a, s, x_rows, panel, w, stop, row == begin && w == 0,
                               partial + part * size);
                   }
                 }
               });
  parallel_for(threads, s.lines, t.outer * (s.parts + 1), [&](int64_t line, int) {
    A* to = dw + line / t.inner * t.w_tap + line % t.inner * t.w_inner;
    for (int64_t o = 0; o < t.outer; o += kLanes<A>) {
      Vec<A> sum{};
      for (int64_t part = 0; part < s.parts; ++part) sum += load(partial + part * size + line * t.outer + o);
      for (int64_t l = 0; l < kLanes<A>; ++l) to[(o + l) * t.w_outer] = sum[l];
    }
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
