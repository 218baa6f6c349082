// Weight gradient of depthwise convolution on the CPU, and of convolution with small groups.
//
// As in the forward (conv_depthwise.cpp) a band of source rows is made ready, once for each channel that a
// group has; then a row of dy meets the band's rows tap by tap, lanes apart.
#include "band.h"
#include "conv_depthwise.h"
#include "conv_inside.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// Fewer tasks than this: images are split into ranges of rows.
constexpr int64_t kMinTasks = 16;

// Row ranges per image, so that there are enough tasks; each has its own partial sums.
template <typename A>
int64_t row_splits(const ConvParams& p, const Band& b) {
  const int64_t tasks = p.n * ceil_div(p.k, b.block), bands = ceil_div(p.out.h, b.rows);
  return imin(bands, ceil_div(kMinTasks, imax(1, tasks)));
}

// Scratch of one thread: the band, one row of dy, and vector sums per channel of x in the group and tap (and
// channel of the block).
template <typename A>
int64_t weight_scratch(const TapConv& t, const TapAxes& a, const Band& b) {
  return round_up(b.elements, 16) + round_up((a.w.grid + 4 * kLanes<A>)*b.block, 16) +
         round_up(t.inner * tap_count(a) * imax(b.block, kLanes<A>), 16);
}

// sums[tap] += dy · x over one row, lane by lane, for up to four taps along W at once.
template <typename A>
void weight_row(const TapAxes& a, const Band& b, bool last, const A* dy, const A* band,
                const int64_t* offsets, A* sums) {
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
          from[j] = band + offsets[tap] + (last ? c : 0);
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
          const Vec<A> g = load(dy + count * L);
          for (int64_t j = 0; j < 4; ++j) s[j] += g * keep_first_lanes<A>(load(from[j] + count * L), rest);
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
  const int64_t taps = tap_count(a), all = t.inner * taps;
  const bool nothing = p.n == 0 || grid_size(a) == 0;
  const Band b = make_band<A>(a, last, p.k);
  const int64_t blocks = ceil_div(p.k, b.block), splits = nothing ? 0 : row_splits<A>(p, b);
  const int64_t padded = blocks * b.block, scratch_size = round_up(weight_scratch<A>(t, a, b), 16);
  int64_t* offsets = reinterpret_cast<int64_t*>(memory);
  A* partial = memory + offset_elements<A>(p);  // [n][split][channel of x in the group][tap][channel]
  A* scratch = partial + round_up(p.n * splits * all * padded, 16);
  const int64_t bands = ceil_div(p.out.h, b.rows), per_split = nothing ? 0 : ceil_div(bands, splits);
  if (!nothing) fill_offsets(t, a, b, offsets);

  const int64_t work = per_split * b.rows * a.w.grid * a.d.grid * b.block * (taps + 2) * t.inner / kLanes<A>;
  parallel_for(threads, p.n * blocks * splits, work, [&](int64_t task, int slot) {
    const int64_t split = task % splits, block = task / splits % blocks, n = task / splits / blocks;
    const int64_t k0 = block * b.block, count = imin(b.block, p.k - k0), unit = imax(b.block, kLanes<A>);
    A* band = scratch + slot * scratch_size;
    A* line = band + round_up(b.elements, 16);
    A* sums = line + round_up((a.w.grid + 4 * kLanes<A>)*b.block, 16);
    zero_row(sums, all * unit);
    zero_row(line, (a.w.grid + 4 * kLanes<A>)*b.block);
    for (int64_t gd = 0; gd < a.d.grid; ++gd)
      for (int64_t j = split * per_split; j < imin((split + 1) * per_split, bands); ++j) {
        const int64_t row = j * b.rows, rows = imin(b.rows, a.h.grid - row);
        for (int64_t i = 0; i < t.inner; ++i) {
          fill_band(b, a, p.in, last, x + n * volume(p.in) * p.c, p.c, gd, row, {t.inner, t.outer}, k0, count,
                    i, band);
          for (int64_t y = 0; y < rows; ++y) {
            const int64_t at = (gd * p.out.h + row + y) * p.out.w;
            if (last)
              for (int64_t w = 0; w < a.w.grid; ++w)
                copy_row(dy + (n * volume(p.out) + at + w) * p.k + k0, 1, line + w * b.block, count);
            else
              copy_row(dy + (n * p.k + k0) * volume(p.out) + at, 1, line, a.w.grid);
            weight_row(a, b, last, line, band + y * band_row_step(b, a), offsets, sums + i * taps * unit);
          }
        }
      }
    A* to = partial + (n * splits + split) * all * padded + k0;
    for (int64_t tap = 0; tap < all; ++tap) {
      if (last) {
        copy_row(sums + tap * unit, 1, to + tap * padded, count);
      } else {
        A sum = 0;
        for (int64_t l = 0; l < kLanes<A>; ++l) sum += sums[tap * unit + l];
        to[tap * padded] = sum;
      }
    }
  });

  parallel_for(threads, p.k, all * (p.n * splits + 1), [&](int64_t k, int) {
    for (int64_t line = 0; line < all; ++line) {
      A sum = 0;
      for (int64_t part = 0; part < p.n * splits; ++part) sum += partial[(part * all + line) * padded + k];
      dw[k * t.w_outer + line / taps * t.w_inner + line % taps * t.w_tap] = from_acc<T>(sum);
    }
  });
}

template <typename T>
int64_t weight_grad_elements(const ConvParams& p, int threads) {
  using A = Acc<T>;
  const TapConv t = tap_conv(p, false);
  const TapAxes a = tap_axes(t, 0);
  if (p.n == 0 || grid_size(a) == 0) return offset_elements<A>(p);
  const Band b = make_band<A>(a, p.channels_last, p.k);
  const int64_t padded = ceil_div(p.k, b.block) * b.block;
  return offset_elements<A>(p) +
         round_up(p.n * row_splits<A>(p, b) * (p.c / p.groups) * tap_count(a) * padded, 16) +
         threads * round_up(weight_scratch<A>(t, a, b), 16);
}

// NCHW by way of channels_last, as in the forward.
template <typename T>
bool turns_over(const ConvParams& p) {
  return pays_inside_depthwise<Acc<T>>(tap_conv(p, false)) && few_to_turn_over(p);
}
// Elements of x and dy, turned over, as so many of the accumulation type.
template <typename T>
int64_t turned_elements(const ConvParams& p) {
  return round_up(p.n * p.c * volume(p.in), 64) + round_up(p.n * p.k * volume(p.out), 64);
}

}  // namespace

template <>
int64_t depthwise_weight_grad_workspace<kIsa>(const ConvParams& p, int threads) {
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    ConvParams q = p;
    q.channels_last |= turns_over<T>(p);
    const int64_t turned = turns_over<T>(p) ? turned_elements<T>(p) : 0;
    bytes = (turned + weight_grad_elements<T>(q, threads)) * static_cast<int64_t>(sizeof(Acc<T>));
  });
  return bytes;
}

template <>
void depthwise_weight_grad<kIsa>(const ConvParams& p, const void* dy, const void* x, void* dw,
                                 void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T *from = static_cast<const T*>(x), *dfrom = static_cast<const T*>(dy);
    Acc<T>* memory = static_cast<Acc<T>*>(workspace);
    if (!turns_over<T>(p)) return run_weight_grad(p, dfrom, from, static_cast<T*>(dw), memory, threads);
    T* rows = reinterpret_cast<T*>(memory);
    T* drows = rows + round_up(p.n * p.c * volume(p.in), 64);
    to_channels_last(p.n, p.c, volume(p.in), from, rows, threads);
    to_channels_last(p.n, p.k, volume(p.out), dfrom, drows, threads);
    ConvParams q = p;
    q.channels_last = true;
    run_weight_grad(q, drows, rows, static_cast<T*>(dw), memory + turned_elements<T>(p), threads);
  });
}

}  // namespace cpu
}  // namespace fastops
