// A tile of an NCHW convolution: rows are result channels, columns are positions.
#pragma once

#include <cstdint>

#include "conv_tiles.h"

namespace fastops {
namespace cpu {
namespace {

// Words of k whose rows are gathered at once, before they are interleaved: 64 × 208 × 4 bytes, in L2.
constexpr int64_t kInterleavedWords = 64;

// Rows of the elements [e0, e1) of k at the positions [begin, end) of image n. What depends on the run of
// positions and on the tap alone is worked out once for all channels.
template <typename T, typename W>
void gather_plane_rows(const Call<T, W>& call, const TapAxes& a, const Order& order, int64_t n, int64_t g,
                       int64_t begin, int64_t end, int64_t e0, int64_t e1, Element<W>* rows) {
  constexpr int64_t stride = kPlaneStride<Acc<W>>;
  const TapConv& t = call.t;
  const int64_t taps = tap_count(a), plane = volume(t.source);
  const T* image = call.source + (n * t.p->groups + g) * t.inner * plane;
  for_each_run(a, begin, end, [&](const Run& run) {
    for (int64_t j = 0; j < taps; ++j) {
      // The channels i for which k = i · order.channel + j · order.tap is in the block.
      const int64_t i0 = imax(0, ceil_div(e0 - j * order.tap, order.channel));
      const int64_t i1 = imin(t.inner, ceil_div(e1 - j * order.tap, order.channel));
      if (i0 >= i1) continue;
      const Tap tap = tap_at(t, a, j);
      const int64_t d = source_at(a.d, run.d, tap.d), h = source_at(a.h, run.h, tap.h);
      const bool in = inside(a.d, d) && inside(a.h, h);
      const Range r = in ? grid_inside(a.w, tap.w, run.w, run.w + run.count) : Range{run.w, run.w};
      const T* from = image + (d * t.source.h + h) * t.source.w + source_at(a.w, r.begin, tap.w);
      for (int64_t i = i0; i < i1; ++i) {
        Element<W>* to = rows + (i * order.channel + j * order.tap - e0) * stride + run.column;
        zero_row(to, r.begin - run.w);
        copy_row(from + i * plane, a.w.step, to + (r.begin - run.w), r.end - r.begin);
        zero_row(to + (r.end - run.w), run.w + run.count - r.end);
      }
    }
  });
  const int64_t used = end - begin, width = round_up(used, kLanes<Acc<W>>);
  for (int64_t k = 0; k < e1 - e0 && used < width; ++k) zero_row(rows + k * stride + used, width - used);
}

// B for the words [k0, k1) of k: one row after the other, or, of pairs, one panel after the other.
template <typename T, typename W>
void gather_plane_block(const Call<T, W>& call, const TapAxes& a, const Order& order, int64_t n, int64_t g,
                        int64_t begin, int64_t end, int64_t k0, int64_t k1, W* b, Element<W>* rows) {
  if constexpr (kPerWord<W> == 1) {
    gather_plane_rows(call, a, order, n, g, begin, end, k0, k1, b);
  } else {
    constexpr int64_t stride = kPlaneStride<Acc<W>>, nr = kTileColumns<Acc<W>>;
    for (int64_t k = k0; k < k1; k += kInterleavedWords) {
      const int64_t words = imin(kInterleavedWords, k1 - k), e1 = imin(2 * (k + words), order.depth);
      gather_plane_rows(call, a, order, n, g, begin, end, 2 * k, e1, rows);
      if (e1 % 2 != 0) zero_row(rows + (e1 - 2 * k) * stride, stride);
      for (int64_t j = 0; j < end - begin; j += kF) {
        W* to = b + j / nr * nr * (k1 - k0) + (k - k0) * nr + j % nr;
        const Element<W>* from = rows + j;
        for (int64_t i = 0; i < words; ++i, from += 2 * stride, to += nr) pair_rows(from, from + stride, to);
      }
    }
  }
}

// Calls f(k0, k1) for blocks of k of about the same depth, at least once.
template <typename W, typename F>
void for_each_plane_block(const Order& order, F f) {
  const int64_t blocks = imax(1, ceil_div(order.words, kPlaneDepth<W>));
  const int64_t depth = ceil_div(order.words, blocks);
  for (int64_t i = 0; i < blocks; ++i) f(i * depth, imin((i + 1) * depth, order.words));
}

// Result channels [o0, o1) of group g, image n, positions [begin, end) of the grid. `gathered`: B, one block
// after the other, or null: then the tile gathers each.
template <typename T, typename W>
void plane_tile(const Call<T, W>& call, const TapAxes& a, const W* weights, int64_t n, int64_t g,
                int64_t begin, int64_t end, int64_t o0, int64_t o1, const W* gathered,
                const Scratch<W>& scratch) {
  using A = Acc<W>;
  const TapConv& t = call.t;
  const Order order = order_of<W>(t, a);
  const int64_t columns = end - begin, plane = volume(t.result),
                row_stride = weight_row_words<T, W>(t, order);
  T* result = call.result + ((n * t.p->groups + g) * t.outer + o0) * plane;
  const bool contiguous = is_contiguous(a), direct = sums_in_result<T>(t, a);

  for_each_plane_block<W>(order, [&](int64_t k0, int64_t k1) {
    const bool last = contiguous && k1 == order.words;
    const W* b = scratch.gathered;
    if (gathered != nullptr)
      b = gathered + k0 * kPlaneStride<A>;
    else
      gather_plane_block(call, a, order, n, g, begin, end, k0, k1, scratch.gathered,
                         reinterpret_cast<Element<W>*>(scratch.panel));
    for (int64_t j = 0; j < columns; j += kTileColumns<A>) {
      const int64_t width = imin(kTileColumns<A>, columns - j), vectors = ceil_div(width, kLanes<A>);
      const int64_t lanes = width - (vectors - 1) * kLanes<A>;
      const W* row[kTileRows];
      TileTask<T, W> task = {};
      task.rows = row, task.segments = 1, task.step = 1, task.depth = k1 - k0;
      task.panel = kPerWord<W> == 1 ? b + j : b + j * (k1 - k0);
      task.panel_stride = kPerWord<W> == 1 ? kPlaneStride<A> : kTileColumns<A>;
      task.first = k0 == 0, task.last = last, task.bias_of_rows = true;
      task.sum_lanes = direct ? lanes : kLanes<A>, task.out_lanes = lanes;
      for (int64_t o = o0; o < o1; o += kTileRows) {
        const int64_t rows = imin(kTileRows, o1 - o);
        for (int64_t m = 0; m < rows; ++m) {
          row[m] = weights + (o + m) * row_stride + k0;
          task.out[m] = result + (o - o0 + m) * plane + begin + j;
          task.sums[m] =
              direct ? reinterpret_cast<A*>(task.out[m]) : scratch.sums + (o - o0 + m) * kPlaneStride<A> + j;
        }
        task.bias = call.bias + g * call.channels_stride + o;
        run_tile(rows, vectors, task);
      }
    }
  });
  if (contiguous) return;
  for (int64_t o = o0; o < o1; ++o)
    for_each_run(a, begin, end, [&](const Run& run) {
      T* to = result + (o - o0) * plane +
              (result_at(a.d, run.d) * t.result.h + result_at(a.h, run.h)) * t.result.w +
              result_at(a.w, run.w);
      write_row<T>(scratch.sums + (o - o0) * kPlaneStride<A> + run.column, to, a.w.out_step, run.count);
    });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
