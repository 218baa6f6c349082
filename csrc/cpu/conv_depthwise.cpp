// Depthwise convolution on the CPU, forward and input gradient; and channels_last convolution with small
// groups.
//
// Few multiplications per element: the work is loads. A band of source rows is converted and padded
// once (band.h), then every result is a register sum over its taps, four vectors at a time, so that
// four FMAs share a weight: along W and H (NCHW), or four positions (channels_last).
#include "conv_depthwise.h"

#include "band.h"
#include "conv_inside.h"
#include "depthwise_rows.h"
#include "dispatch.h"
#include "parallel.h"
#include "turn.h"

namespace fastops {
namespace cpu {
namespace {

// Elements from one row of sums to the next. Vector stores may reach past the last position.
template <typename A>
int64_t sums_stride(const TapAxes& a, const Band& b) {
  return (a.w.grid + 4 * kLanes<A>)*b.block;
}

// Scratch of one thread, in accumulation elements: the band, then sums of its rows.
template <typename A>
int64_t scratch_elements(const TapAxes& a, const Band& b) {
  return round_up(b.elements, 16) + round_up(b.rows * sums_stride<A>(a, b), 16);
}

template <typename A>
int64_t largest_scratch(const TapConv& t) {
  int64_t most = 0;
  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = tap_axes(t, phase);
    if (grid_size(a) == 0) continue;
    most = imax(most, scratch_elements<A>(a, make_band<A>(a, t.p->channels_last, t.outer * t.p->groups)));
  }
  return most;
}

// One band of one call: taps, and where things are.
template <typename A>
struct BandSum {
  int64_t taps;
  const int64_t* offsets;  // of each tap in the band
  const A* weights;        // [tap][channel of the block]
  const A* band;
  int64_t band_row;  // from one row to the next
  A* sums;
  int64_t sums_row;
  int64_t rows, columns;
  int64_t channels;  // of the block, that there are
  bool first;        // sums start here
  const A* bias;     // per channel of the block: what they end with
};

// NCHW: sums += Σ_tap weight · band. Four vectors at once: 4 of one row, 2 of two, or 1 of four.
template <typename A>
void add_planes(const BandSum<A>& s) {
  constexpr int64_t L = kLanes<A>;
  const int64_t vectors = vectors_per_row<A>(s.columns), rows = 4 / vectors;
  const Vec<A> bias = broadcast(*s.bias);
  for (int64_t y = 0; y < s.rows; y += rows)
    for (int64_t x = 0; x < s.columns; x += vectors * L) {
      const A* from[4];
      A* to[4];
      for (int64_t u = 0; u < 4; ++u) {  // past the last row: once more the last one, with the same result
        const int64_t row = imin(y + u / vectors, s.rows - 1), column = x + u % vectors * L;
        from[u] = s.band + row * s.band_row + column;
        to[u] = s.sums + row * s.sums_row + column;
      }
      Vec<A> s0{}, s1{}, s2{}, s3{};
      if (!s.first) s0 = load(to[0]), s1 = load(to[1]), s2 = load(to[2]), s3 = load(to[3]);
      for (int64_t tap = 0; tap < s.taps; ++tap) {
        const Vec<A> weight = broadcast(s.weights[tap]);
        const int64_t offset = s.offsets[tap];
        s0 += weight * load(from[0] + offset);
        s1 += weight * load(from[1] + offset);
        s2 += weight * load(from[2] + offset);
        s3 += weight * load(from[3] + offset);
      }
      store(to[0], s0 + bias);
      store(to[1], s1 + bias);
      store(to[2], s2 + bias);
      store(to[3], s3 + bias);
    }
}

// channels_last: the lines of taps, those that share a row of the source, of a band that begins at a grid
// row.
struct Lines {
  const TapAxes& a;
  int64_t gd, row;
  // f(line) for those inside the source for row y of the band.
  template <typename F>
  __attribute__((always_inline)) void for_each(int64_t y, F f) const {
    for (int64_t d = 0; d < a.d.taps; ++d) {
      if (!inside(a.d, source_at(a.d, gd, d))) continue;
      for (int64_t h = 0; h < a.h.taps; ++h)
        if (inside(a.h, source_at(a.h, row + y, h))) f(d * a.h.taps + h);
    }
  }
};

// The same for a block of channels and P positions at once, `step` columns apart. Of each line K neighbouring
// taps at a time: (P − 1) · step + K loads of the source and K of weights serve P · K FMAs.
template <int K, int step, typename A>
void add_blocks(const BandSum<A>& s, const Lines& lines, int64_t block) {
  constexpr int P = kPositionsAtOnce;
  const int64_t taps = lines.a.w.taps;
  // Taps in the order of the columns that they read.
  const bool backwards = lines.a.w.off_step < 0;
  const int64_t weight_step = backwards ? -block : block;
  for (int64_t y = 0; y < s.rows; ++y)
    for (int64_t x = 0; x < s.columns; x += P)
      for (int64_t c = 0; c < s.channels; c += kLanes<A>) {
        A* to = s.sums + y * s.sums_row + x * block + c;
        Vec<A> sum[P];
#pragma GCC unroll 8
        for (int u = 0; u < P; ++u) sum[u] = s.first ? Vec<A>{} : load(to + u * block);
        // No tap reaches some phases of a stride.
        if (taps > 0)
          lines.for_each(y, [&](int64_t line) __attribute__((always_inline)) {
            const int64_t first = line * taps + (backwards ? taps - 1 : 0);
            const A* from = s.band + y * s.band_row + x * step * block + c + s.offsets[first];
            const A* weights = s.weights + first * block + c;
            add_line<1, K, step, A>(sum, taps, weights, weight_step, 0,
                                    [&](int64_t i) { return load(from + i * block); });
          });
#pragma GCC unroll 8
        for (int u = 0; u < P; ++u) store(to + u * block, sum[u] + load(s.bias + c));
      }
}

// Taps or positions further apart.
template <typename A>
void add_blocks_apart(const BandSum<A>& s, int64_t block, int64_t step) {
  for (int64_t y = 0; y < s.rows; ++y)
    for (int64_t x = 0; x < s.columns; x += 4)
      for (int64_t c = 0; c < s.channels; c += kLanes<A>) {
        const A* from = s.band + y * s.band_row + x * step * block + c;
        A* to = s.sums + y * s.sums_row + x * block + c;
        Vec<A> sum[4];
        for (int u = 0; u < 4; ++u) sum[u] = s.first ? Vec<A>{} : load(to + u * block);
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          const Vec<A> weight = load(s.weights + tap * block + c);
          for (int u = 0; u < 4; ++u) sum[u] += weight * load(from + s.offsets[tap] + u * step * block);
        }
        for (int u = 0; u < 4; ++u) store(to + u * block, sum[u] + load(s.bias + c));
      }
}

template <typename A>
void add_any_blocks(const BandSum<A>& s, const Lines& lines, int64_t block) {
  const TapAxis& w = lines.a.w;
  const bool neighbours = w.off_step == 1 || w.off_step == -1 || w.taps == 1;
  if (!neighbours || w.step > 2) return add_blocks_apart(s, block, w.step);
  with_line<A>(w, [&](auto k, auto step) { add_blocks<k.value, step.value>(s, lines, block); });
}

// The weights of a phase as [block of result channels][i][tap][channel of the block].
template <typename T>
void pack_weights(const TapConv& t, const TapAxes& a, int64_t block, const T* w, Acc<T>* to) {
  const int64_t taps = tap_count(a), channels = t.outer * t.p->groups;
  if (t.inner == 1 && t.outer == 1 && taps == volume(t.p->kernel)) {  // (channel, tap) as it is
    for (int64_t c = 0; c < channels; c += block) {
      const int64_t count = imin(block, channels - c);
      if (count < block) zero_row(to + c * taps, block * taps);
      turn_over(w + c * taps, taps, count, taps, to + c * taps, block);
    }
    return;
  }
  zero_row(to, round_up(channels, block) * t.inner * taps);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t place = tap_at(t, a, tap).index * t.w_tap;
    for (int64_t g = 0, r = 0; g < t.p->groups; ++g)
      for (int64_t o = 0; o < t.outer; ++o, ++r)
        for (int64_t i = 0; i < t.inner; ++i)
          to[((r / block * t.inner + i) * taps + tap) * block + r % block] =
              to_acc(w[weight_group(t, g) + o * t.w_outer + i * t.w_inner + place]);
  }
}
template <typename A>
int64_t weight_elements(const TapConv& t) {
  return round_up(round_up(t.outer * t.p->groups, kChannelBlock) * t.inner * volume(t.p->kernel), 16);
}

template <typename T>
void run(const TapConv& t, const T* source, const T* w, const T* bias, T* result, Acc<T>* memory,
         int threads) {
  using A = Acc<T>;
  const ConvParams& p = *t.p;
  const bool last = p.channels_last;
  const int64_t source_channels = t.inner * p.groups, result_channels = t.outer * p.groups;
  const int64_t scratch_size = round_up(largest_scratch<A>(t), 16);
  int64_t* offsets = reinterpret_cast<int64_t*>(memory);
  A* packed = memory + offset_elements<A>(p);
  A* scratch = packed + weight_elements<A>(t);

  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = tap_axes(t, phase);
    if (grid_size(a) == 0) continue;
    const int64_t taps = tap_count(a);
    const Band b = make_band<A>(a, last, result_channels);
    const int64_t blocks = ceil_div(result_channels, b.block), bands = ceil_div(a.h.grid, b.rows);
    fill_offsets(t, a, b, offsets);
    pack_weights(t, a, b.block, w, packed);
    if (served_by_rows(t, a)) {
      constexpr int64_t rows = 4;
      const int64_t parts = ceil_div(a.h.grid, rows);
      parallel_for(
          threads, p.n * blocks * a.d.grid * parts,
          rows * a.w.grid * b.block * (taps * t.inner + 2) / kLanes<A>, [&](int64_t task, int) {
            const int64_t row = task % parts * rows, gd = task / parts % a.d.grid,
                          block = task / parts / a.d.grid % blocks, n = task / parts / a.d.grid / blocks,
                          r0 = block * b.block;
            const int64_t count = imin(b.block, result_channels - r0);
            A end[kChannelBlock] = {};
            for (int64_t c = 0; c < count && bias != nullptr; ++c) end[c] = to_acc(bias[r0 + c]);
            depthwise_rows(RowsTask<T>{t, a, source, result, n, gd, row, imin(rows, a.h.grid - row), r0,
                                       count, packed + block * t.inner * taps * b.block, b.block, end});
          });
      continue;
    }

    const int64_t work = b.rows * a.w.grid * b.block * (taps * t.inner + 2) / kLanes<A>;
    parallel_for(threads, p.n * blocks * a.d.grid * bands, work, [&](int64_t task, int slot) {
      const int64_t row = task % bands * b.rows, gd = task / bands % a.d.grid,
                    block = task / bands / a.d.grid % blocks, n = task / bands / a.d.grid / blocks;
      const int64_t r0 = block * b.block, count = imin(b.block, result_channels - r0);
      A* band = scratch + slot * scratch_size;
      A* sums = band + round_up(b.elements, 16);
      BandSum<A> s = {taps,
                      offsets,
                      nullptr,
                      band,
                      band_row_step(b, a),
                      sums,
                      sums_stride<A>(a, b),
                      imin(b.rows, a.h.grid - row),
                      a.w.grid,
                      count,
                      true,
                      nullptr};

      const A none[kChannelBlock] = {};
      A end[kChannelBlock] = {};
      for (int64_t c = 0; c < count && bias != nullptr; ++c) end[c] = to_acc(bias[r0 + c]);

      const T* image = source + n * volume(t.source) * source_channels;
      for (int64_t i = 0; i < t.inner; ++i) {
        s.first = i == 0, s.bias = i + 1 == t.inner ? end : none;
        fill_band(b, a, t.source, last, image, source_channels, gd, row, {t.inner, t.outer}, r0, count, i,
                  band);
        s.weights = packed + (block * t.inner + i) * taps * b.block;
        if (last)
          add_any_blocks(s, Lines{a, gd, row}, b.block);
        else
          add_planes(s);
      }
      for (int64_t y = 0; y < s.rows; ++y) {
        const int64_t at = (result_at(a.d, gd) * t.result.h + result_at(a.h, row + y)) * t.result.w;
        if (last) {
          T* to = result + (n * volume(t.result) + at + a.w.out0) * result_channels + r0;
          for (int64_t x = 0; x < a.w.grid; ++x)
            write_row<T>(sums + y * s.sums_row + x * b.block, to + x * a.w.out_step * result_channels, 1,
                         count);
        } else {
          T* to = result + (n * result_channels + r0) * volume(t.result) + at + a.w.out0;
          write_row<T>(sums + y * s.sums_row, to, a.w.out_step, a.w.grid);
        }
      }
    });
  }
}

}  // namespace

template <>
int64_t depthwise_workspace<kIsa>(const ConvParams& p, bool input_grad, int threads) {
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const auto elements = [&](const TapConv& t) {
      return offset_elements<A>(p) + weight_elements<A>(t) + threads * round_up(largest_scratch<A>(t), 16);
    };
    const TapConv t = tap_conv(p, input_grad);
    const Inside inside = channels_last_inside(t);
    bytes =
        static_cast<int64_t>(sizeof(A)) *
        (pays_inside_depthwise<A>(t) ? inside_elements<T>(inside) + elements(tap_conv(inside.p, input_grad))
                                     : elements(t));
  });
  return bytes;
}

template <>
void depthwise_conv<kIsa>(const ConvParams& p, bool input_grad, const void* source, const void* w,
                          const void* bias, void* result, void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto call = [&](const TapConv& t, const T* from, T* to, Acc<T>* rest) {
      run(t, from, static_cast<const T*>(w), static_cast<const T*>(bias), to, rest, threads);
    };
    const TapConv t = tap_conv(p, input_grad);
    const auto through =
        pays_inside_depthwise<Acc<T>>(t) ? run_inside<T, decltype(call)> : run_as_it_is<T, decltype(call)>;
    through(t, static_cast<const T*>(source), static_cast<T*>(result), static_cast<Acc<T>*>(workspace),
            threads, call);
  });
}

}  // namespace cpu
}  // namespace fastops
