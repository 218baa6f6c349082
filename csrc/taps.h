// Interpolation along one axis, written once for host and device: which inputs an output reads, and
// with which weights. Forward kernels use it as it is, adjoints through its inverse.
#pragma once

#include <cmath>
#include <cstdint>

#include "geometry.h"
#include "types.h"

namespace fastops {

enum class Filter : int32_t { kNearest = 0, kNearestExact = 1, kLinear = 2, kCubic = 3, kLanczos = 4 };

// One spatial axis of an interpolation.
struct SampleAxis {
  int64_t in;
  int64_t out;
  double step;  // inputs per output
  Filter filter;
  bool ratio;          // step is in / out
  bool align_corners;  // the centres of the corner elements coincide
  bool antialias;      // the filter is stretched over the inputs that an output stands for
};

// scale: outputs per input where the caller gave a factor, which then decides; 0: out / in.
FASTOPS_INLINE SampleAxis tap_axis(int64_t in, int64_t out, double scale, Filter filter, bool align_corners,
                                   bool antialias) {
  const bool ratio = !align_corners && scale == 0;
  const double step = align_corners ? (out > 1 ? double(in - 1) / double(out - 1) : 0.0)
                      : ratio       ? double(in) / double(out)
                                    : 1.0 / scale;
  return {in, out, step, filter, ratio, align_corners, antialias};
}

// ---- nearest -----------------------------------------------------------------------------------

// From here on fp32 cannot tell neighbouring coordinates apart.
constexpr int64_t kExactBelow = int64_t{1} << 22;

// The input that output o copies. Up to kExactBelow this is torch's arithmetic, in fp32 for every
// dtype, so that no index differs from torch's; above, where torch's would drift, it is exact.
FASTOPS_INLINE int64_t nearest_index(const SampleAxis& a, int64_t o) {
  const bool exact = a.filter == Filter::kNearestExact;
  if (!exact && a.out == a.in) return o;
  if (!exact && a.out == 2 * a.in) return o / 2;
  int64_t i;
  if (imax(a.in, a.out) <= kExactBelow) {
    const float step = static_cast<float>(a.step);
    // (o + 0.5) · step is formed in fp64 and rounded to fp32 before it is cut, as in torch.
    i = static_cast<int64_t>(exact ? static_cast<float>((double(o) + 0.5) * double(step))
                                   : static_cast<float>(o) * step);
  } else if (!a.ratio) {
    i = static_cast<int64_t>((double(o) + (exact ? 0.5 : 0.0)) * a.step);
  } else {
    i = exact ? (2 * o + 1) * a.in / (2 * a.out) : o * a.in / a.out;
  }
  return imin(i, a.in - 1);
}

// The first output that copies input i or a later one. Indices never decrease, so a guess is at most
// a few steps off.
FASTOPS_INLINE int64_t nearest_first(const SampleAxis& a, int64_t i) {
  if (i <= 0) return 0;
  if (i >= a.in) return a.out;
  const double guess = double(i) / a.step;
  int64_t o = guess < double(a.out) ? static_cast<int64_t>(guess) : a.out;
  while (o > 0 && nearest_index(a, o - 1) >= i) --o;
  while (o < a.out && nearest_index(a, o) < i) ++o;
  return o;
}

// ---- weighted ----------------------------------------------------------------------------------

// Inputs under the unstretched filter.
FASTOPS_INLINE int64_t filter_width(Filter f) {
  return f == Filter::kLinear ? 2 : f == Filter::kCubic ? 4 : 6;
}

// sin(πx) by its series, |x| small: the same bits on every processor, and on a GPU without the stack
// that std::sin keeps for large arguments.
FASTOPS_INLINE double sin_pi(double x) {
  const double whole = std::floor(x + 0.5), r = 3.14159265358979323846 * (x - whole), z = r * r;
  double sum = 1.0;
  for (int k = 10; k > 0; --k) sum = 1.0 - z * (1.0 / (2 * k * (2 * k + 1))) * sum;
  return static_cast<int64_t>(whole) % 2 == 0 ? r * sum : -r * sum;
}

FASTOPS_INLINE double sinc(double x) { return x == 0.0 ? 1.0 : sin_pi(x) / (3.14159265358979323846 * x); }

// The filter at distance x. The cubic's parameter is -0.5 with antialiasing and -0.75 without.
FASTOPS_INLINE double filter_at(const SampleAxis& a, double x) {
  x = x < 0 ? -x : x;
  if (a.filter == Filter::kLinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (a.filter == Filter::kLanczos) return x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
  const double t = a.antialias ? -0.5 : -0.75;
  if (x < 1.0) return ((t + 2.0) * x - (t + 3.0)) * x * x + 1.0;
  return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * t : 0.0;
}

// What output o reads: inputs [begin, end), and where the filter stands over them.
struct Taps {
  int64_t begin;
  int64_t end;
  int64_t first;   // without antialias: the filter's first tap, before clamping to the input
  double centre;   // antialias: in input coordinates; else its offset past tap first + width / 2 - 1
  double stretch;  // antialias: inputs per filter unit
  double scale;    // antialias: 1 / sum of the weights; set by normalise()
};

// Every output is an input: the filter's other taps have no weight, and are not read. Theirs might not be
// finite, and 0 · ∞ is NaN.
FASTOPS_INLINE bool copies(const SampleAxis& a) { return a.in == a.out && a.step == 1.0; }

// begin and end never decrease with o.
FASTOPS_INLINE Taps taps_of(const SampleAxis& a, int64_t o) {
  const int64_t width = filter_width(a.filter);
  if (copies(a)) return {o, o + 1, o - width / 2 + 1, a.antialias ? double(o) + 0.5 : 0.0, 1.0, 1.0};
  if (a.antialias) {
    const double stretch = a.step > 1.0 ? a.step : 1.0;
    const double support = 0.5 * double(width) * stretch;
    // Also with align_corners: there torch changes the step only.
    const double centre = a.step * (double(o) + 0.5);
    const int64_t begin = imax(static_cast<int64_t>(centre - support + 0.5), 0);
    return {begin,   imax(imin(static_cast<int64_t>(centre + support + 0.5), a.in), begin),
            begin,   centre,
            stretch, 1.0};
  }
  double x = a.align_corners ? a.step * double(o) : a.step * (double(o) + 0.5) - 0.5;
  if (a.filter == Filter::kLinear && x < 0) x = 0;
  const int64_t i = imin(static_cast<int64_t>(std::floor(x)), a.in - 1);
  double offset = x - double(i);
  offset = offset > 1.0 ? 1.0 : offset;
  const int64_t first = i - width / 2 + 1;
  return {imax(first, 0), imin(first + width, a.in), first, offset, 1.0, 1.0};
}

// Without antialias: the weight of tap t.first + k, which may lie beyond an edge.
FASTOPS_INLINE double unfolded_weight(const SampleAxis& a, const Taps& t, int64_t k) {
  return filter_at(a, double(k + 1 - filter_width(a.filter) / 2) - t.centre);
}

// Weight of input t.begin + k. Taps beyond an edge fold onto the edge.
FASTOPS_INLINE double tap_weight(const SampleAxis& a, const Taps& t, int64_t k) {
  if (a.antialias) return filter_at(a, (double(t.begin + k) - t.centre + 0.5) / t.stretch) * t.scale;
  const int64_t width = filter_width(a.filter), position = t.begin + k;
  double sum = 0.0;
  for (int64_t j = 0; j < width; ++j)
    if (imin(imax(t.first + j, 0), a.in - 1) == position) sum += unfolded_weight(a, t, j);
  return sum;
}

// Makes the weights of antialiased taps sum to 1.
FASTOPS_INLINE void normalise(const SampleAxis& a, Taps& t) {
  if (!a.antialias) return;
  double sum = 0.0;
  for (int64_t k = 0; k < t.end - t.begin; ++k) sum += tap_weight(a, t, k);
  t.scale = sum != 0.0 ? 1.0 / sum : 1.0;
}

// The most inputs that one output reads.
FASTOPS_INLINE int64_t max_taps(const SampleAxis& a) {
  int64_t most = 1;
  for (int64_t o = 0; o < a.out; ++o) {
    const Taps t = taps_of(a, o);
    most = imax(most, t.end - t.begin);
  }
  return most;
}

// The most outputs that read one input.
FASTOPS_INLINE int64_t max_readers(const SampleAxis& a) {
  int64_t most = 1, first = 0, last = 0;
  for (int64_t i = 0; i < a.in; ++i) {
    while (first < a.out && taps_of(a, first).end <= i) ++first;
    while (last < a.out && taps_of(a, last).begin <= i) ++last;
    most = imax(most, last - first);
  }
  return most;
}

// What these two are at most, where walking along the axis takes too long. A half-open interval of
// length l has at most ⌈l / s⌉ of the points that are s apart; rounding may add one at either end.
FASTOPS_INLINE int64_t at_most(double count, int64_t limit) {
  return imax(count + 3.0 < double(limit) ? static_cast<int64_t>(count) + 3 : limit, 1);
}
FASTOPS_INLINE double reach(const SampleAxis& a) {
  const double width = double(filter_width(a.filter));
  return a.antialias && a.step > 1.0 ? width * a.step : width;
}
FASTOPS_INLINE int64_t max_taps_bound(const SampleAxis& a) {
  return a.antialias ? at_most(reach(a), a.in) : imin(filter_width(a.filter), imax(a.in, 1));
}
FASTOPS_INLINE int64_t max_readers_bound(const SampleAxis& a) {
  // Without antialias: coordinates beyond the last input are moved onto it, however many there are; those
  // before the first lie within half an input.
  const double last = a.align_corners ? a.step * double(a.out - 1) : a.step * (double(a.out) - 0.5) - 0.5;
  if (a.step <= 0.0 || (!a.antialias && last >= double(a.in))) return imax(a.out, 1);
  return at_most((reach(a) + (a.antialias ? 0.0 : 0.5)) / a.step, a.out);
}

}  // namespace fastops
