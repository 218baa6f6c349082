// Where windows lie, for the pooling kernels: geometry.h's arithmetic in 32 bits where the tensors are
// small enough, its divisions made by multiplication; and how a thread takes several channels at once.
#pragma once

#include <type_traits>

#include "../pool.h"
#include "dispatch.h"
#include "launch.h"
#include "packs.h"

namespace fastops {
namespace cuda {
namespace {

// Divides by a number that the host knows: n in [0, 2³¹) for int32_t, any n ≥ 0 for int64_t.
template <typename I>
struct Divider {
  I divisor;
  explicit Divider(int64_t d) : divisor(imax(d, 1)) {}
  FASTOPS_HD I operator()(I n) const { return n / divisor; }
};
template <>
struct Divider<int32_t> {
  // n / d = (n + ⌊n·factor / 2³²⌋) >> shift, where 2^shift is the power of two at or above d.
  uint32_t factor, shift = 0;
  explicit Divider(int64_t d) {
    const uint64_t divisor = static_cast<uint64_t>(imax(d, 1));
    while ((uint64_t{1} << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(((((uint64_t{1} << shift) - divisor) << 32) / divisor) + 1);
  }
  FASTOPS_HD int32_t operator()(int32_t n) const {
    const uint32_t u = static_cast<uint32_t>(n);
    return static_cast<int32_t>((u + static_cast<uint32_t>(uint64_t{u} * factor >> 32)) >> shift);
  }
};

// Positions first, first + dilation, … of an axis: `count` of them, perhaps none.
template <typename I>
struct Taps {
  I first, count;
};
// Windows begin, begin + step, … below end.
template <typename I>
struct Covering {
  I begin, end, step;
};

template <typename I>
struct Axis {
  I in, out, kernel, stride, pad, dilation;
  I step;  // every how many windows one has a tap at a position that lies in their spans
  bool adaptive;
  Divider<I> by_in, by_out, by_stride, by_dilation;

  explicit Axis(const PoolAxis& a)
      : in(a.in),
        out(a.out),
        kernel(a.kernel),
        stride(a.stride),
        pad(a.pad),
        dilation(a.adaptive ? 1 : a.dilation),
        step(a.adaptive ? 1 : a.dilation / gcd(a.stride, a.dilation)),
        adaptive(a.adaptive),
        by_in(a.in),
        by_out(a.out),
        by_stride(a.stride),
        by_dilation(a.dilation) {}

  // The taps of window o inside the input.
  FASTOPS_HD Taps<I> taps(I o) const {
    if (adaptive) {
      const I first = by_out(o * in);
      return {first, by_out((o + 1) * in + out - 1) - first};
    }
    const I start = o * stride - pad;
    const I skipped = start < 0 ? by_dilation(dilation - 1 - start) : 0;
    I end = kernel;
    if (start + (kernel - 1) * dilation >= in) end = start < in ? by_dilation(in - start + dilation - 1) : 0;
    return {start + skipped * dilation, end > skipped ? end - skipped : 0};
  }
  // The windows that have position i among their taps.
  FASTOPS_HD Covering<I> covering(I i) const {
    if (adaptive) {
      const I end = by_in((i + 1) * out + in - 1);
      return {by_in(i * out), end < out ? end : out, 1};
    }
    const I at = i + pad, span = (kernel - 1) * dilation + 1;
    I begin = at < span ? 0 : by_stride(at - span + stride), end = by_stride(at) + 1;
    end = end < out ? end : out;
    if (dilation > 1) {
      // The distance to a window's start is a multiple of the dilation for every step-th, or for none.
      I tries = 0;
      while (tries < step && begin < end && !divides(at - begin * stride)) ++begin, ++tries;
      if (tries == step) end = begin;
    }
    return {begin, end, step};
  }
  // How many positions window o counts in an average (window_count of geometry.h).
  FASTOPS_HD I counted(I o, bool include_pad) const {
    if (!include_pad || adaptive) return taps(o).count;
    const I start = o * stride - pad, limit = in + pad;
    return (start + kernel < limit ? start + kernel : limit) - start;
  }

 private:
  FASTOPS_HD bool divides(I distance) const { return by_dilation(distance) * dilation == distance; }
};

// A position in a dense tensor (planes, d, h, w, groups), where a group is the channels of one thread.
template <typename I>
struct Place {
  I plane, d, h, w, group;
};

template <typename I>
struct Windows {
  Axis<I> d, h, w;
  I groups;
  Divider<I> by_groups;

  Windows(const PoolParams& p, int64_t channel_groups)
      : d(axis_d(p)), h(axis_h(p)), w(axis_w(p)), groups(channel_groups), by_groups(channel_groups) {}

  FASTOPS_HD Place<I> output(I index) const {
    return place(index, d.out, h.out, w.out, d.by_out, h.by_out, w.by_out);
  }
  FASTOPS_HD Place<I> input(I index) const {
    return place(index, d.in, h.in, w.in, d.by_in, h.by_in, w.by_in);
  }
  // Indices of the group of the place that is in column 0 of a row.
  FASTOPS_HD I output_row(const Place<I>& at, I od, I oh) const {
    return ((at.plane * d.out + od) * h.out + oh) * w.out * groups + at.group;
  }
  FASTOPS_HD I input_row(const Place<I>& at, I id, I ih) const {
    return ((at.plane * d.in + id) * h.in + ih) * w.in * groups + at.group;
  }

 private:
  FASTOPS_HD Place<I> place(I index, I depth, I height, I width, const Divider<I>& by_depth,
                            const Divider<I>& by_height, const Divider<I>& by_width) const {
    Place<I> at;
    const I column = by_groups(index), row = by_width(column), slice = by_height(row);
    at.group = index - column * groups;
    at.w = column - row * width;
    at.h = row - slice * height;
    at.plane = by_depth(slice);
    at.d = slice - at.plane * depth;
    return at;
  }
};

// Whether everything that Axis and Windows compute is below 2³¹.
inline bool fits_32_bits(const PoolAxis& a) {
  constexpr int64_t limit = int64_t{1} << 31, each = int64_t{1} << 29;
  if (a.adaptive) return (a.out + 1) * (a.in + 1) < limit;
  if (a.kernel >= each || a.stride >= each || a.pad >= each || a.dilation >= each) return false;
  const int64_t span = (a.kernel - 1) * a.dilation + 1;
  return a.in + a.pad + a.stride + a.dilation < limit && a.out * a.stride + span < limit;
}
inline bool fits_32_bits(const PoolParams& p) {
  constexpr int64_t limit = int64_t{1} << 31;
  return p.n * p.c * volume(p.in) < limit && p.n * p.c * volume(p.out) < limit && fits_32_bits(axis_d(p)) &&
         fits_32_bits(axis_h(p)) && fits_32_bits(axis_w(p));
}

// ---- several channels at once --------------------------------------------------------------------

// Interleaved channels of a plane.
inline int64_t channels_of(const PoolParams& p) { return p.channels_last ? p.c : 1; }
inline int64_t planes_of(const PoolParams& p) { return p.channels_last ? p.n : p.n * p.c; }

// Calls f(width, windows): `width` channels per thread, a compile-time constant, which is 16 bytes of
// them where the tensors' combined addresses allow; the windows in the narrowest index type.
template <typename T, typename F>
void dispatch_windows(const PoolParams& p, uintptr_t addresses, F f) {
  constexpr int width = 16 / sizeof(T);
  const bool vectors = p.channels_last && vectors_fit(p.c, sizeof(T), addresses);
  const bool small = fits_32_bits(p);
  const int64_t groups = vectors ? p.c / width : channels_of(p);
  const auto with_index = [&](auto constant) {
    if (small)
      f(constant, Windows<int32_t>(p, groups));
    else
      f(constant, Windows<int64_t>(p, groups));
  };
  if (vectors)
    with_index(std::integral_constant<int, width>{});
  else
    with_index(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
