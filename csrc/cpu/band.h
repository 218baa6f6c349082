// Source rows of a depthwise convolution, made ready for a band of result rows: converted to the
// accumulation type and padded with zeros, so that the inner loops need no bounds and no conversions.
#pragma once

#include <cstdint>

#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// channels_last: channels handled together, so that a prepared row (112 positions × 64 floats = 28 KiB)
// stays near L1.
constexpr int64_t kChannelBlock = 64;
// A band has as many rows as fit this many elements: 256 KiB of fp32, in L2. Of few rows most would be filled
// again for the next band.
constexpr int64_t kBandElements = 65536;

// channels_last: positions that are summed together, each in a register. With 8 of them, 7 weights and what
// is loaded, half of AVX-512's registers; 4 leave room in AVX2's 16.
constexpr int64_t kPositionsAtOnce = kVectorBytes == 64 ? 8 : 4;

// How a band lies in memory: [tap d][source row][…], a row being
//   NCHW: [w mod step][w / step], so that a tap's elements for consecutive positions are contiguous,
//   channels_last: [w][channel of the block].
struct Band {
  int64_t block;         // channels together: 1 in NCHW
  int64_t rows;          // grid rows
  int64_t source_rows;   // for them
  int64_t width;         // source columns, padding included
  int64_t phase_stride;  // NCHW: elements from one w mod step to the next
  int64_t row_stride;
  int64_t min_h, min_w;  // offsets of the first source row and column
  int64_t elements;      // in all
};

inline int64_t min_offset(const TapAxis& a) {
  return imin(a.off0, a.off0 + (imax(a.taps, 1) - 1) * a.off_step);
}
inline int64_t span(const TapAxis& a, int64_t grid) {
  return (grid - 1) * a.step + (imax(a.taps, 1) - 1) * (a.off_step < 0 ? -a.off_step : a.off_step) + 1;
}

// NCHW: vectors of one row that are handled together, 4, 2 or 1.
template <typename A>
int64_t vectors_per_row(int64_t columns) {
  const int64_t needed = ceil_div(columns, kLanes<A>);
  return needed > 2 ? 4 : needed;
}

template <typename A>
Band make_band(const TapAxes& a, bool channels_last, int64_t channels) {
  Band b;
  const int64_t blocks = ceil_div(channels, kChannelBlock);
  b.block = channels_last ? round_up(ceil_div(channels, imax(blocks, 1)), kLanes<A>) : 1;
  b.width = span(a.w, a.w.grid);
  // The kernels read whole groups of vectors, or of positions.
  b.phase_stride = ceil_div(b.width, a.w.step) + vectors_per_row<A>(a.w.grid) * kLanes<A>;
  b.row_stride =
      channels_last ? (b.width + kPositionsAtOnce * a.w.step) * b.block : a.w.step * b.phase_stride;
  b.rows = 1;
  while (b.rows < a.h.grid && span(a.h, 2 * b.rows) * b.row_stride * a.d.taps <= kBandElements) b.rows *= 2;
  b.rows = imin(b.rows, a.h.grid);
  b.source_rows = span(a.h, b.rows);
  b.min_h = min_offset(a.h);
  b.min_w = min_offset(a.w);
  b.elements = a.d.taps * b.source_rows * b.row_stride;
  return b;
}

// Where the elements of a tap for grid row `row` of the band begin. The element of grid column w is
// NCHW: [w], channels_last: [w · step · block].
inline int64_t band_offset(const Band& b, const TapAxes& a, const Tap& tap, int64_t row, bool channels_last) {
  const int64_t h = row * a.h.step + a.h.off0 + tap.h * a.h.off_step - b.min_h;
  const int64_t w = a.w.off0 + tap.w * a.w.off_step - b.min_w;
  const int64_t column = channels_last ? w * b.block : w % a.w.step * b.phase_stride + w / a.w.step;
  return (tap.d * b.source_rows + h) * b.row_stride + column;
}

// From one grid row of a band to the next.
inline int64_t band_row_step(const Band& b, const TapAxes& a) { return a.h.step * b.row_stride; }

// Which channel of the source belongs to result channel r, for source channel i of its group.
struct ChannelMap {
  int64_t inner, outer;  // channels of a group on the source's and the result's side
  int64_t operator()(int64_t r, int64_t i) const { return r / outer * inner + i; }
};

// Fills the band for grid rows from `row` on, of grid slice gd, from one image of the source of
// `channels` channels. Channel c of the block, c < count, is source channel map(r0 + c, i).
template <typename T>
void fill_band(const Band& b, const TapAxes& a, const Extent& size, bool channels_last, const T* image,
               int64_t channels, int64_t gd, int64_t row, const ChannelMap& map, int64_t r0, int64_t count,
               int64_t i, Acc<T>* to) {
  constexpr int64_t L = kLanes<Acc<T>>;
  int64_t channel[kChannelBlock];
  for (int64_t c = 0; c < count; ++c) channel[c] = map(r0 + c, i);
  // Where groups do not cross vectors, a vector of results has its sources in one vector, in another order.
  const bool permuted = map.inner == map.outer && L % map.inner == 0 && count % L == 0;
  Mask<Acc<T>> order{};
  for (int64_t l = 0; l < L && permuted; ++l)
    order[l] = static_cast<LaneNumber<Acc<T>>>(l / map.inner * map.inner + i);
  const T* past = image + volume(size) * channels;  // the end of the image
  const bool identity = map.inner == 1 && map.outer == 1;
  const int64_t begin = imax(0, -b.min_w), end = imax(begin, imin(b.width, size.w - b.min_w));
  for (int64_t td = 0; td < a.d.taps; ++td) {
    const int64_t d = source_at(a.d, gd, td);
    for (int64_t r = 0; r < b.source_rows; ++r) {
      const int64_t h = row * a.h.step + b.min_h + r;
      Acc<T>* out = to + (td * b.source_rows + r) * b.row_stride;
      if (!inside(a.d, d) || !inside(a.h, h)) {
        zero_row(out, b.row_stride);
      } else if (channels_last) {
        const T* pixel = image + ((d * size.h + h) * size.w + begin + b.min_w) * channels;
        zero_row(out, begin * b.block);
        for (int64_t w = begin; w < end; ++w, pixel += channels) {
          Acc<T>* lanes = out + w * b.block;
          if (identity)
            copy_row(pixel + r0, 1, lanes, count);
          else if (permuted)
            for (int64_t c = 0; c < count; c += L) store(lanes + c, permute(load(pixel + r0 + c), order));
          else
            for (int64_t c = 0; c < count; ++c) lanes[c] = to_acc(pixel[channel[c]]);
          zero_row(lanes + count, b.block - count);
        }
        zero_row(out + end * b.block, b.row_stride - end * b.block);
      } else {
        const T* line = image + channel[0] * volume(size) + (d * size.h + h) * size.w + b.min_w;
        if (a.w.step == 1 && past - line >= end + L) {
          // Whole vectors; what they read past the row is overwritten by the padding.
          zero_row(out, begin);
          for (int64_t w = begin; w < end; w += L) store(out + w, load(line + w));
          zero_row(out + end, b.row_stride - end);
          continue;
        }
        zero_row(out, b.row_stride);
        for (int64_t phase = 0; phase < a.w.step; ++phase) {
          const int64_t w0 = begin + (phase - begin % a.w.step + a.w.step) % a.w.step;
          if (w0 < end)
            copy_row(line + w0, a.w.step, out + phase * b.phase_stride + w0 / a.w.step,
                     ceil_div(end - w0, a.w.step));
        }
      }
    }
  }
}

// Elements of A that hold the offset of every tap within a band.
template <typename A>
int64_t offset_elements(const ConvParams& p) {
  return round_up(volume(p.kernel) * static_cast<int64_t>(sizeof(int64_t) / sizeof(A) + 1), 16);
}
void fill_offsets(const TapConv& t, const TapAxes& a, const Band& b, int64_t* offsets) {
  for (int64_t tap = 0; tap < tap_count(a); ++tap)
    offsets[tap] = band_offset(b, a, tap_at(t, a, tap), 0, t.p->channels_last);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
