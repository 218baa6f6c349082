// Weighted interpolation of uint8 images on the CPU.
//
// As torch (and Pillow) do it: weights in fixed point (fixed_point.h); first along W, then down H, each
// rounded to uint8. So results equal torch's bit for bit.
#include <stdexcept>

#include "../fixed_point.h"
#include "../interpolate.h"
#include "banded.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// The weights of one axis as integers.
struct FixedPoint {
  Banded<double> matrix;
  int16_t* weight;
  int precision = 0;

  FixedPoint(const SampleAxis& a, Arena& arena)
      : matrix(a, false, arena), weight(arena.take<int16_t>(matrix.results * matrix.stride)) {}

  void fill(const SampleAxis& a) {
    matrix.fill(a, false);
    double largest = 0;
    for (int64_t i = 0; i < matrix.results * matrix.stride; ++i)
      largest = matrix.weight[i] > largest ? matrix.weight[i] : largest;
    precision = precision_for(largest);
    for (int64_t i = 0; i < matrix.results * matrix.stride; ++i)
      weight[i] = fixed_weight(matrix.weight[i], precision);
  }
};

// y[e] = Σ_k w[k] · x[k · stride + e] for `count` elements.
void combine(const uint8_t* x, int64_t stride, const int16_t* w, int64_t taps, int precision, int64_t count,
             uint8_t* y) {
  constexpr int64_t kChunk = 256;
  int32_t sum[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t n = imin(kChunk, count - begin);
    for (int64_t e = 0; e < n; ++e) sum[e] = fixed_half(precision);
    for (int64_t k = 0; k < taps; ++k) {
      const uint8_t* row = x + k * stride + begin;
      const int32_t weight = w[k];
      for (int64_t e = 0; e < n; ++e) sum[e] += weight * row[e];
    }
    for (int64_t e = 0; e < n; ++e) y[begin + e] = fixed_to_u8(sum[e], precision);
  }
}

constexpr int kFew = 4;  // channels up to which a row is taken apart into one row per channel

// One row of pixels of few channels, along W: sums of products of 16-bit integers, which vectorise.
// apart: channels · width 16-bit integers of scratch.
template <int channels>
void along(const FixedPoint& m, const uint8_t* x, int64_t width, int16_t* __restrict apart, uint8_t* y) {
  for (int64_t i = 0; i < m.matrix.sources; ++i)
    for (int c = 0; c < channels; ++c) apart[c * width + i] = x[i * channels + c];
  for (int64_t r = 0; r < m.matrix.results; ++r) {
    const int16_t* w = m.weight + r * m.matrix.stride;
    for (int c = 0; c < channels; ++c) {
      const int16_t* from = apart + c * width + m.matrix.begin[r];
      int32_t sum = 0;
      for (int64_t g = 0; g < m.matrix.stride; g += 8)
        for (int k = 0; k < 8; ++k) sum += w[g + k] * from[g + k];
      y[r * channels + c] = fixed_to_u8(sum + fixed_half(m.precision), m.precision);
    }
  }
}

void along(const FixedPoint& m, int64_t channels, const uint8_t* x, int64_t width, int16_t* apart,
           uint8_t* y) {
  switch (channels) {
    case 1:
      return along<1>(m, x, width, apart, y);
    case 2:
      return along<2>(m, x, width, apart, y);
    case 3:
      return along<3>(m, x, width, apart, y);
    case 4:
      return along<4>(m, x, width, apart, y);
  }
  for (int64_t r = 0; r < m.matrix.results; ++r)
    combine(x + m.matrix.begin[r] * channels, channels, m.weight + r * m.matrix.stride, m.matrix.count[r],
            m.precision, channels, y + r * channels);
}

struct Work {
  FixedPoint rows;
  FixedPoint columns;
  uint8_t* between;  // x, resized along W
  int64_t width;     // of a row taken apart, with room for taps of weight 0 beyond its end
  int16_t* apart;

  Work(const InterpolateParams& p, int threads, Arena& arena)
      : rows(axis_h(p), arena),
        columns(axis_w(p), arena),
        between(arena.take<uint8_t>(p.n * p.c * p.in.h * p.out.w)),
        width(p.in.w + columns.matrix.stride),
        apart(arena.take<int16_t>(width * kFew * threads)) {}
};

}  // namespace

template <>
void interpolate_weighted_u8<kIsa>(const InterpolateParams& p, const void* x, void* y, void* workspace,
                                   int threads) {
  if (p.in.d != 1 || p.out.d != 1)
    throw std::invalid_argument("fastops: weighted interpolation is 2-d so far; the depth must be 1");
  const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
  if (planes == 0) return;
  Arena arena(workspace);
  Work work(p, threads, arena);
  work.rows.fill(axis_h(p));
  work.columns.fill(axis_w(p));
  const uint8_t* from = static_cast<const uint8_t*>(x);
  uint8_t* to = static_cast<uint8_t*>(y);
  const int64_t row = p.out.w * channels;
  parallel_for(threads, planes * p.in.h, row * work.columns.matrix.taps, [&](int64_t task, int slot) {
    along(work.columns, channels, from + task * p.in.w * channels, work.width,
          work.apart + slot * work.width * kFew, work.between + task * row);
  });
  parallel_for(threads, planes * p.out.h, row * work.rows.matrix.taps / 4, [&](int64_t task, int) {
    const int64_t plane = task / p.out.h, r = task % p.out.h;
    combine(work.between + (plane * p.in.h + work.rows.matrix.begin[r]) * row, row,
            work.rows.weight + r * work.rows.matrix.stride, work.rows.matrix.count[r], work.rows.precision,
            row, to + task * row);
  });
}

template <>
int64_t interpolate_weighted_u8_workspace<kIsa>(const InterpolateParams& p, int threads) {
  Arena arena(nullptr);
  Work(p, threads, arena);
  return arena.used();
}

}  // namespace cpu
}  // namespace fastops
