// Depthwise convolution on the CPU: forward, input gradient, weight gradient.
//
// Few multiplications per element: the work is loads. A band of source rows is converted and padded
// once (band.h), then every result is a register sum over its taps: four vectors at a time along W
// (NCHW) or four positions of one vector of channels (channels_last), so that four FMAs share a weight.
#include "conv_depthwise.h"

#include "band.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Fewer tasks than this: images are split into ranges of rows in the weight gradient.
constexpr int64_t kMinTasks = 16;

// ---- forward and input gradient --------------------------------------------------------------------

// Scratch of one thread, in accumulation elements: the band, then sums of its rows.
template <typename A>
int64_t scratch_elements(const TapAxes& a, const Band& b) {
  return round_up(b.elements, 16) + round_up(b.rows * (a.w.grid + 4 * kLanes<A>)*b.block, 16);
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

// sums[w] += Σ_tap weight[tap] · band, for one grid row of one channel. Weights are `stride` apart.
template <typename T>
void plane_row(const TapConv& t, const TapAxes& a, const Band& b, const T* w, const Acc<T>* band, int64_t row,
               Acc<T>* sums) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  for (int64_t x = 0; x < a.w.grid; x += 4 * L) {
    Vec<A> s0 = load(sums + x), s1 = load(sums + x + L), s2 = load(sums + x + 2 * L),
           s3 = load(sums + x + 3 * L);
    for (int64_t tap = 0; tap < tap_count(a); ++tap) {
      const Tap at = tap_at(t, a, tap);
      const Vec<A> weight = broadcast(to_acc(w[at.index * t.w_tap]));
      const A* from = band + band_offset(b, a, at, row, false) + x;
      s0 += weight * load(from);
      s1 += weight * load(from + L);
      s2 += weight * load(from + 2 * L);
      s3 += weight * load(from + 3 * L);
    }
    store(sums + x, s0);
    store(sums + x + L, s1);
    store(sums + x + 2 * L, s2);
    store(sums + x + 3 * L, s3);
  }
}

// The same for a block of channels; weights are [tap][channel of the block].
template <typename A>
void row_of_blocks(const TapConv& t, const TapAxes& a, const Band& b, const A* weights, const A* band,
                   int64_t row, A* sums) {
  constexpr int64_t L = kLanes<A>;
  const int64_t step = a.w.step * b.block;
  for (int64_t c = 0; c < b.block; c += L)
    for (int64_t x = 0; x < a.w.grid; x += 4) {
      A* to = sums + x * b.block + c;
      Vec<A> s0 = load(to), s1 = load(to + b.block), s2 = load(to + 2 * b.block), s3 = load(to + 3 * b.block);
      for (int64_t tap = 0; tap < tap_count(a); ++tap) {
        const Vec<A> weight = load(weights + tap * b.block + c);
        const A* from = band + band_offset(b, a, tap_at(t, a, tap), row, true) + x * step + c;
        s0 += weight * load(from);
        s1 += weight * load(from + step);
        s2 += weight * load(from + 2 * step);
        s3 += weight * load(from + 3 * step);
      }
      store(to, s0);
      store(to + b.block, s1);
      store(to + 2 * b.block, s2);
      store(to + 3 * b.block, s3);
    }
}

template <typename T>
void run(const TapConv& t, const T* source, const T* w, const T* bias, T* result, Acc<T>* memory,
         int threads) {
  using A = Acc<T>;
  const ConvParams& p = *t.p;
  const bool last = p.channels_last;
  const int64_t source_channels = t.inner * p.groups, result_channels = t.outer * p.groups;
  const int64_t scratch_size = largest_scratch<A>(t), all_taps = volume(p.kernel);
  // channels_last: the weights as [block of channels][i][tap][channel of the block], in front.
  A* packed = memory;
  A* scratch =
      memory + (last ? round_up(round_up(result_channels, kChannelBlock) * t.inner * all_taps, 16) : 0);

  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = tap_axes(t, phase);
    if (grid_size(a) == 0) continue;
    const int64_t taps = tap_count(a);
    const Band b = make_band<A>(a, last, result_channels);
    const int64_t blocks = ceil_div(result_channels, b.block), bands = ceil_div(a.h.grid, b.rows);
    if (last)
      for (int64_t r = 0; r < blocks * b.block; ++r)
        for (int64_t i = 0; i < t.inner; ++i)
          for (int64_t tap = 0; tap < taps; ++tap)
            packed[((r / b.block * t.inner + i) * taps + tap) * b.block + r % b.block] =
                r < result_channels ? to_acc(w[weight_group(t, r / t.outer) + r % t.outer * t.w_outer +
                                               i * t.w_inner + tap_at(t, a, tap).index * t.w_tap])
                                    : A(0);

    const int64_t work = b.rows * a.w.grid * b.block * (taps + 2) / kLanes<A>;
    parallel_for(threads, p.n * blocks * a.d.grid * bands, work, [&](int64_t task, int slot) {
      const int64_t row = task % bands * b.rows, gd = task / bands % a.d.grid,
                    block = task / bands / a.d.grid % blocks, n = task / bands / a.d.grid / blocks;
      const int64_t rows = imin(b.rows, a.h.grid - row), r0 = block * b.block;
      const int64_t count = imin(b.block, result_channels - r0), g = r0 / t.outer;  // g: NCHW only
      A* band = scratch + slot * round_up(scratch_size, 16);
      A* sums = band + round_up(b.elements, 16);
      const int64_t line = (a.w.grid + 4 * kLanes<A>)*b.block;

      for (int64_t i = 0; i < rows * line; ++i) {
        const int64_t c = i % b.block;
        sums[i] = bias != nullptr && c < count ? to_acc(bias[r0 + c]) : A(0);
      }
      for (int64_t i = 0; i < t.inner && taps > 0; ++i) {
        if (last) {
          fill_band(b, a, t.source, true, source + n * volume(t.source) * source_channels, gd, row,
                    source_channels, i, count, t.inner, t.outer, r0, band);
          for (int64_t y = 0; y < rows; ++y)
            row_of_blocks(t, a, b, packed + (block * t.inner + i) * taps * b.block, band, y, sums + y * line);
        } else {
          fill_band(b, a, t.source, false,
                    source + (n * source_channels + g * t.inner + i) * volume(t.source), gd, row, 1, 0, 1, 1,
                    1, 0, band);
          for (int64_t y = 0; y < rows; ++y)
            plane_row(t, a, b, w + weight_group(t, g) + r0 % t.outer * t.w_outer + i * t.w_inner, band, y,
                      sums + y * line);
        }
      }
      for (int64_t y = 0; y < rows; ++y) {
        const int64_t at = (result_at(a.d, gd) * t.result.h + result_at(a.h, row + y)) * t.result.w;
        if (last) {
          T* to = result + (n * volume(t.result) + at) * result_channels + r0;
          for (int64_t x = 0; x < a.w.grid; ++x)
            write_row<T>(sums + y * line + x * b.block, to + result_at(a.w, x) * result_channels, 1, count);
        } else {
          T* to = result + (n * result_channels + r0) * volume(t.result) + at + a.w.out0;
          write_row<T>(sums + y * line, to, a.w.out_step, a.w.grid);
        }
      }
    });
  }
}

// ---- weight gradient -------------------------------------------------------------------------------

// Row ranges per image, so that there are enough tasks; each has its own partial sums.
template <typename A>
int64_t row_splits(const ConvParams& p, const Band& b) {
  const int64_t tasks = p.n * ceil_div(p.k, b.block), bands = ceil_div(p.out.h, b.rows);
  return imin(bands, ceil_div(kMinTasks, imax(1, tasks)));
}

// Scratch of one thread: the band, one row of dy, and vector sums per tap (and channel of the block).
template <typename A>
int64_t weight_scratch(const TapAxes& a, const Band& b) {
  return round_up(b.elements, 16) + round_up((a.w.grid + 4 * kLanes<A>)*b.block, 16) +
         round_up(tap_count(a) * imax(b.block, kLanes<A>), 16);
}

// sums[tap] += dy · x over one row, lane by lane, for up to four taps along W at once.
template <typename A>
void weight_row(const TapConv& t, const TapAxes& a, const Band& b, bool last, const A* dy, const A* band,
                int64_t row, A* sums) {
  constexpr int64_t L = kLanes<A>;
  const int64_t unit = imax(b.block, L), step = last ? a.w.step * b.block : L;
  const int64_t count = last ? a.w.grid : a.w.grid / L, dy_step = last ? b.block : L;
  for (int64_t c = 0; c < unit; c += L)
    for (int64_t line = 0; line < a.d.taps * a.h.taps; ++line)
      for (int64_t tw = 0; tw < a.w.taps; tw += 4) {
        const int64_t some = imin(4, a.w.taps - tw), first = line * a.w.taps + tw;
        const A* from[4];
        Vec<A> s[4] = {};  // of this row alone: short sums keep the rounding error small
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t tap = first + imin(j, some - 1);
          from[j] = band + band_offset(b, a, tap_at(t, a, tap), row, last) + (last ? c : 0);
        }
        for (int64_t x = 0; x < count; ++x) {
          const Vec<A> g = load(dy + x * dy_step + (last ? c : 0));
          s[0] += g * load(from[0] + x * step);
          s[1] += g * load(from[1] + x * step);
          s[2] += g * load(from[2] + x * step);
          s[3] += g * load(from[3] + x * step);
        }
        if (!last && a.w.grid % L != 0) {  // masked: 0 × inf past the end must not count
          const int64_t rest = a.w.grid % L;
          const Vec<A> g = load_first(dy + count * L, rest);
          for (int64_t j = 0; j < some; ++j) s[j] += g * load_first(from[j] + count * L, rest);
        }
        for (int64_t j = 0; j < some; ++j) {
          A* to = sums + (first + j) * unit + c;
          store(to, load(to) + s[j]);
        }
      }
}

template <typename T>
void run_weight_grad(const ConvParams& p, const T* dy, const T* x, T* dw, Acc<T>* memory, int threads) {
  using A = Acc<T>;
  const TapConv t = tap_conv(p, false);
  const TapAxes a = tap_axes(t, 0);
  const bool last = p.channels_last;
  const int64_t taps = tap_count(a), multiplier = t.outer;
  const bool nothing = p.n == 0 || grid_size(a) == 0;
  const Band b = make_band<A>(a, last, p.k);
  const int64_t blocks = ceil_div(p.k, b.block), splits = nothing ? 0 : row_splits<A>(p, b);
  const int64_t padded = blocks * b.block, scratch_size = round_up(weight_scratch<A>(a, b), 16);
  A* partial = memory;  // [n][split][tap][channel]
  A* scratch = memory + round_up(p.n * splits * taps * padded, 16);
  const int64_t bands = ceil_div(p.out.h, b.rows), per_split = nothing ? 0 : ceil_div(bands, splits);

  const int64_t work = per_split * b.rows * a.w.grid * a.d.grid * b.block * (taps + 2) / kLanes<A>;
  parallel_for(threads, p.n * blocks * splits, work, [&](int64_t task, int slot) {
    const int64_t split = task % splits, block = task / splits % blocks, n = task / splits / blocks;
    const int64_t k0 = block * b.block, count = imin(b.block, p.k - k0), unit = imax(b.block, kLanes<A>);
    A* band = scratch + slot * scratch_size;
    A* line = band + round_up(b.elements, 16);
    A* sums = line + round_up((a.w.grid + 4 * kLanes<A>)*b.block, 16);
    zero_row(sums, taps * unit);
    zero_row(line, (a.w.grid + 4 * kLanes<A>)*b.block);
    for (int64_t gd = 0; gd < a.d.grid; ++gd)
      for (int64_t j = split * per_split; j < imin((split + 1) * per_split, bands); ++j) {
        const int64_t row = j * b.rows, rows = imin(b.rows, a.h.grid - row);
        if (last)
          fill_band(b, a, p.in, true, x + n * volume(p.in) * p.c, gd, row, p.c, 0, count, 1, multiplier, k0,
                    band);
        else
          fill_band(b, a, p.in, false, x + (n * p.c + k0 / multiplier) * volume(p.in), gd, row, 1, 0, 1, 1, 1,
                    0, band);
        for (int64_t y = 0; y < rows; ++y) {
          const int64_t at = (gd * p.out.h + row + y) * p.out.w;
          if (last)
            for (int64_t w = 0; w < a.w.grid; ++w)
              copy_row(dy + (n * volume(p.out) + at + w) * p.k + k0, 1, line + w * b.block, count);
          else
            copy_row(dy + (n * p.k + k0) * volume(p.out) + at, 1, line, a.w.grid);
          weight_row(t, a, b, last, line, band, y, sums);
        }
      }
    A* to = partial + (n * splits + split) * taps * padded + k0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      if (last) {
        copy_row(sums + tap * unit, 1, to + tap * padded, count);
      } else {
        A sum = 0;
        for (int64_t l = 0; l < kLanes<A>; ++l) sum += sums[tap * unit + l];
        to[tap * padded] = sum;
      }
    }
  });

  parallel_for(threads, p.k, taps * (p.n * splits + 1), [&](int64_t k, int) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      A sum = 0;
      for (int64_t part = 0; part < p.n * splits; ++part) sum += partial[(part * taps + tap) * padded + k];
      dw[k * t.w_outer + tap * t.w_tap] = from_acc<T>(sum);
    }
  });
}

template <typename T>
int64_t weight_grad_elements(const ConvParams& p, int threads) {
  using A = Acc<T>;
  const TapAxes a = tap_axes(tap_conv(p, false), 0);
  if (p.n == 0 || grid_size(a) == 0) return 0;
  const Band b = make_band<A>(a, p.channels_last, p.k);
  const int64_t padded = ceil_div(p.k, b.block) * b.block;
  return round_up(p.n * row_splits<A>(p, b) * tap_count(a) * padded, 16) +
         threads * round_up(weight_scratch<A>(a, b), 16);
}

}  // namespace

template <>
int64_t depthwise_workspace<kIsa>(const ConvParams& p, bool input_grad, int threads) {
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using A = Acc<typename decltype(type)::type>;
    const TapConv t = tap_conv(p, input_grad);
    const int64_t weights =
        p.channels_last ? round_up(t.outer * p.groups, kChannelBlock) * t.inner * volume(p.kernel) : 0;
    bytes = (round_up(weights, 16) + threads * round_up(largest_scratch<A>(t), 16)) *
            static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

template <>
void depthwise_conv<kIsa>(const ConvParams& p, bool input_grad, const void* source, const void* w,
                          const void* bias, void* result, void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(tap_conv(p, input_grad), static_cast<const T*>(source), static_cast<const T*>(w),
        static_cast<const T*>(bias), static_cast<T*>(result), static_cast<Acc<T>*>(workspace), threads);
  });
}

template <>
int64_t depthwise_weight_grad_workspace<kIsa>(const ConvParams& p, int threads) {
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    bytes = weight_grad_elements<T>(p, threads) * static_cast<int64_t>(sizeof(Acc<T>));
  });
  return bytes;
}

template <>
void depthwise_weight_grad<kIsa>(const ConvParams& p, const void* dy, const void* x, void* dw,
                                 void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_weight_grad(p, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw),
                    static_cast<Acc<T>*>(workspace), threads);
  });
}

}  // namespace cpu
}  // namespace fastops
