// Compares the windows of the CUDA kernels (csrc/cuda/windows.h) with geometry.h and with plain division,
// also at numbers that no small tensor leads to. Prints what differs; compiled and run by test_simt.py.
#include "../../csrc/cuda/windows.h"

#include <cstdio>
#include <random>

using namespace fastops;
using cuda::Axis;
using cuda::Divider;

namespace {

std::mt19937_64 generator(1);
int64_t below(int64_t limit) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(limit)); }

int differences = 0;
void expect(bool holds, const char* what, int64_t a, int64_t b) {
  if (!holds && ++differences <= 10) std::printf("%s: %lld, %lld\n", what, (long long)a, (long long)b);
}

constexpr int64_t kLimit = int64_t{1} << 31;

void compare_division(int64_t n, int64_t d) {
  if (n < 0 || n >= kLimit || d < 1 || d >= kLimit) return;
  expect(Divider<int32_t>(d)(static_cast<int32_t>(n)) == n / d, "n / d", n, d);
}

// Every tap of every window, and the windows that cover each position.
template <typename I>
void compare_axis(const PoolAxis& a) {
  const Axis<I> axis(a);
  for (int64_t o = 0; o < a.out; ++o) {
    const Range wanted = window_taps(a, o);
    const cuda::Taps<I> taps = axis.taps(static_cast<I>(o));
    expect(taps.count == imax(wanted.end - wanted.begin, 0), "taps", o, taps.count);
    if (taps.count > 0) {
      expect(taps.skipped == (a.adaptive ? 0 : wanted.begin), "skipped", o, taps.skipped);
      for (I k = 0; k < taps.count; ++k)
        expect(axis.tap_at(static_cast<I>(o), taps.first + k * axis.dilation) == taps.skipped + k, "tap", o,
               k);
      expect(taps.skipped + taps.count <= most_taps(a), "most taps", o, taps.count);
      expect(taps.first == window_start(a, o) + wanted.begin * axis.dilation, "first tap", o, taps.first);
    }
    if (axis.dilation == 1)
      expect(axis.counted(static_cast<I>(o), true) == window_count(a, o, true), "counted", o, a.kernel);
  }
  for (int64_t i = 0; i < a.in; ++i) {
    const cuda::Covering<I> covering = axis.covering(static_cast<I>(i));
    I next = covering.begin;
    for (int64_t o = 0; o < a.out; ++o) {
      const cuda::Taps<I> taps = axis.taps(static_cast<I>(o));
      bool covers = false;
      for (I k = 0; k < taps.count; ++k) covers |= taps.first + k * axis.dilation == i;
      if (!covers) continue;
      expect(next < covering.end && next == o, "covering", i, o);
      next += covering.step;
    }
    expect(next >= covering.end, "covering too many", i, next);
  }
}

}  // namespace

int main() {
  for (int k = 0; k < 300000; ++k) {
    const int64_t d = below(int64_t{1} << (1 + below(31))), power = int64_t{1} << below(31);
    for (const int64_t divisor : {d, power - 1, power, power + 1, kLimit - 1})
      for (const int64_t n : {below(kLimit), kLimit - 1 - below(3), divisor * below(1 << 10) - below(2)})
        compare_division(n, divisor);
  }
  for (int k = 0; k < 20000; ++k) {
    PoolAxis a{1 + below(40), 1 + below(50), 1 + below(6), 1 + below(5), 0, 1 + below(4), below(3) == 0};
    const int64_t span = (a.kernel - 1) * a.dilation + 1;
    a.pad = below(span / 2 + 1);
    if (!a.adaptive) {
      if (a.in + 2 * a.pad < span) continue;
      a.out = (a.in + 2 * a.pad - span) / a.stride + 1 + below(2);  // one more with ceil_mode
    }
    compare_axis<int32_t>(a);
    compare_axis<int64_t>(a);
  }
  // What does not fit is left to 64 bits.
  PoolParams p;
  p.n = 2, p.c = 1 << 10, p.in = {1, 1 << 10, 1 << 10}, p.out = {1, 1, 1};
  expect(!cuda::fits_32_bits(p), "2^31 elements fit", 0, 0);
  p.n = 1;
  expect(cuda::fits_32_bits(p), "2^30 elements do not fit", 0, 0);
  p.stride.w = int64_t{1} << 40;
  expect(!cuda::fits_32_bits(p), "a stride of 2^40 fits", 0, 0);
  p.adaptive = true;
  p.in = {1, 1, 1 << 16}, p.out = {1, 1, 1 << 15}, p.c = 1;
  expect(!cuda::fits_32_bits(p), "products of 2^31 fit", 0, 0);
  return differences != 0;
}
