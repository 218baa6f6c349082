#include "interpolate_table.h"

#include <algorithm>

#include "fixed_point.h"

namespace fastops {
namespace {

InterpolateTable nearest_table(const SampleAxis& a, bool adjoint) {
  InterpolateTable t;
  for (int64_t r = 0; r < (adjoint ? a.in : a.out); ++r) {
    const int64_t begin = adjoint ? nearest_first(a, r) : nearest_index(a, r);
    const int64_t count = adjoint ? nearest_first(a, r + 1) - begin : 1;
    t.begin.push_back(static_cast<int32_t>(begin));
    t.count.push_back(static_cast<int32_t>(count));
    t.taps = imax(t.taps, count);
  }
  return t;
}

InterpolateTable weighted_table(const SampleAxis& a) {
  InterpolateTable t;
  t.taps = max_taps(a);
  t.weight.assign(static_cast<size_t>(a.out * t.taps), 0.0);
  for (int64_t o = 0; o < a.out; ++o) {
    Taps taps = taps_of(a, o);
    normalise(a, taps);
    t.begin.push_back(static_cast<int32_t>(taps.begin));
    t.count.push_back(static_cast<int32_t>(taps.end - taps.begin));
    for (int64_t k = 0; k < taps.end - taps.begin; ++k)
      t.weight[static_cast<size_t>(o * t.taps + k)] = tap_weight(a, taps, k);
  }
  return t;
}

// begin and end never decrease from result to result, so an element's readers are neighbours.
InterpolateTable transposed(const InterpolateTable& f, int64_t in, int64_t out) {
  InterpolateTable t;
  std::vector<int32_t> first(static_cast<size_t>(in), 0), last(static_cast<size_t>(in), 0);
  for (int64_t o = 0; o < out; ++o)
    for (int32_t k = 0; k < f.count[o]; ++k) {
      const size_t i = static_cast<size_t>(f.begin[o] + k);
      if (last[i] == 0) first[i] = static_cast<int32_t>(o);
      last[i] = static_cast<int32_t>(o + 1);
    }
  for (size_t i = 0; i < static_cast<size_t>(in); ++i) {
    t.begin.push_back(first[i]);
    t.count.push_back(last[i] - first[i]);
    t.taps = imax(t.taps, last[i] - first[i]);
  }
  t.weight.assign(static_cast<size_t>(in * t.taps), 0.0);
  for (int64_t o = 0; o < out; ++o)
    for (int32_t k = 0; k < f.count[o]; ++k) {
      const int64_t i = f.begin[o] + k;
      t.weight[static_cast<size_t>(i * t.taps + o - first[i])] =
          f.weight[static_cast<size_t>(o * f.taps + k)];
    }
  return t;
}

}  // namespace

InterpolateTable interpolate_table(const InterpolateParams& p, int axis, bool adjoint, bool fixed_point) {
  const SampleAxis a = axis == 0 ? axis_d(p) : axis == 1 ? axis_h(p) : axis_w(p);
  if (p.filter == Filter::kNearest || p.filter == Filter::kNearestExact) return nearest_table(a, adjoint);
  InterpolateTable t = weighted_table(a);
  if (fixed_point) {
    t.precision = precision_for(*std::max_element(t.weight.begin(), t.weight.end()));
    for (double& w : t.weight) w = fixed_weight(w, t.precision);
  }
  return adjoint ? transposed(t, a.in, a.out) : t;
}

}  // namespace fastops
