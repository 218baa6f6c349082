// Checks the taps of interpolation (csrc/taps.h) and their tables on the GPU (csrc/cuda/banded.h) where
// no small tensor leads: along axes past 2^23, where fp32 cannot tell coordinates apart, and against the
// bounds that tables are allocated by. Prints what differs; compiled and run by test_simt.py.
#include <cstdio>
#include <random>
#include <vector>

#include "../../csrc/cuda/banded.h"

using namespace fastops;
using cuda::Span;

namespace {

std::mt19937_64 generator(1);
int64_t below(int64_t limit) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(limit)); }

int differences = 0;
void expect(bool holds, const char* what, const SampleAxis& a, int64_t at, int64_t got) {
  if (!holds && ++differences <= 10)
    std::printf("%s: %lld -> %lld, filter %d, align_corners %d, antialias %d: at %lld, %lld\n", what,
                (long long)a.in, (long long)a.out, (int)a.filter, a.align_corners, a.antialias, (long long)at,
                (long long)got);
}

template <typename I>
std::vector<Span<I>> spans_of(const SampleAxis& a) {
  std::vector<Span<I>> spans(static_cast<size_t>(a.out));
  for (int64_t o = 0; o < a.out; ++o) {
    const auto t = taps_of(a, o);
    spans[static_cast<size_t>(o)] = {static_cast<I>(t.begin), static_cast<I>(t.end - t.begin)};
  }
  return spans;
}

// The kernels transpose a table by searching in it.
template <typename I>
Range readers(const std::vector<Span<I>>& spans, int64_t i) {
  const I outputs = static_cast<I>(spans.size()), input = static_cast<I>(i);
  return {cuda::first_beyond<true>(spans.data(), outputs, input),
          cuda::first_beyond<false>(spans.data(), outputs, input)};
}

void check_bounds(const SampleAxis& a) {
  expect(max_taps(a) <= max_taps_bound(a), "too many taps", a, max_taps(a), max_taps_bound(a));
  expect(max_readers(a) <= max_readers_bound(a), "too many readers", a, max_readers(a), max_readers_bound(a));
  // And the bounds do not waste memory.
  const double share = double(imax(a.in, a.out)) / double(imin(a.in, a.out));
  const int64_t fair = static_cast<int64_t>(7.0 * share) + 8;
  expect(max_taps_bound(a) <= fair && max_readers_bound(a) <= imax(fair, a.align_corners ? a.out : 0),
         "a loose bound", a, max_taps_bound(a), max_readers_bound(a));
}

void check_transpose(const SampleAxis& a) {
  const auto spans = spans_of<int32_t>(a);
  for (int64_t i = 0; i < a.in; ++i) {
    const Range found = readers(spans, i);
    for (int64_t o = 0; o < a.out; ++o) {
      const Span<int32_t> s = spans[static_cast<size_t>(o)];
      const bool reads = s.begin <= i && i < s.begin + s.count;
      expect(reads == (found.begin <= o && o < found.end), "a reader", a, i, o);
    }
  }
}

// Without antialias and align_corners output o lies at (2o + 1) · in / (2 · out) - 1/2.
void check_long_axis(const SampleAxis& a) {
  const auto spans = spans_of<int32_t>(a);
  for (int64_t o = 0; o < a.out; o += 1 + below(20)) {
    const Span<int32_t> s = spans[static_cast<size_t>(o)];
    const int64_t numerator = (2 * o + 1) * a.in - a.out;
    const int64_t i = floor_div(numerator, 2 * a.out), first = i - filter_width(a.filter) / 2 + 1;
    if (i >= 0) {
      const auto t = taps_of(a, o);
      const double offset = double(numerator - 2 * a.out * i) / double(2 * a.out);
      // On the very edge of an input, either of the two serves: the weights say where.
      expect(std::fabs(double(t.first - first) + t.centre - offset) < 1e-6, "a coordinate", a, o, t.first);
    }
    for (const int64_t input : {int64_t{s.begin}, int64_t{s.begin} + s.count - 1}) {
      const Range found = readers(spans, input);
      expect(found.begin <= o && o < found.end, "a reader of a long axis", a, input, o);
      expect(found.end - found.begin <= max_readers_bound(a), "readers of a long axis", a, input, o);
    }
  }
}

}  // namespace

int main() {
  for (int k = 0; k < 20000; ++k) {
    const int64_t in = 1 + below(int64_t{1} << (1 + below(8))),
                  size = 1 + below(int64_t{1} << (1 + below(8)));
    const Filter filter = static_cast<Filter>(2 + below(3));
    const bool antialias = filter == Filter::kLanczos || below(2), align_corners = below(3) == 0;
    double scale = 0;
    int64_t out = size;
    if (!align_corners && below(2)) {
      scale = double(size) / double(in) * (1.0 + double(below(1000)) / 1500.0);
      out = static_cast<int64_t>(double(in) * scale);
      if (out < 1) continue;
    }
    const SampleAxis a = tap_axis(in, out, scale, filter, align_corners, antialias);
    check_bounds(a);
    if (k % 10 == 0) check_transpose(a);
  }
  constexpr int64_t kLong = int64_t{1} << 23;
  check_long_axis(tap_axis(2 * kLong + 6, kLong + 3, 0, Filter::kLinear, false, false));
  check_long_axis(tap_axis(kLong + 3, 2 * kLong + 7, 0, Filter::kCubic, false, false));
  check_long_axis(tap_axis(3 * kLong + 1, 11, 0, Filter::kCubic, false, false));
  return differences != 0;
}
