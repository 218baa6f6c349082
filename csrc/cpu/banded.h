// Banded matrices: interpolation along one axis as a table of the inputs and weights of each result.
// The forward has a matrix per axis, the adjoint its transpose, and both run through the same kernel.
#pragma once

#include "../arena.h"
#include "../taps.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

// Tables are padded to the widest vector there is, so that a workspace fits every instruction set.
template <typename A>
constexpr int64_t kWidest = 64 / static_cast<int64_t>(sizeof(A));

template <typename A>
FASTOPS_INLINE int64_t padded_to_vector(int64_t count) {
  return ceil_div(count, kWidest<A>) * kWidest<A>;
}

// result[r] = Σ_k weight[r · stride + k] · source[begin[r] + k], k < count[r]; the other weights are 0.
template <typename A>
struct Banded {
  int64_t results;
  int64_t sources;
  int64_t taps;    // the largest count
  int64_t stride;  // taps, rounded up to whole vectors
  int64_t* begin;
  int64_t* count;
  A* weight;

  Banded(const SampleAxis& a, bool adjoint, Arena& arena)
      : results(adjoint ? a.in : a.out),
        sources(adjoint ? a.out : a.in),
        taps(adjoint ? max_readers(a) : max_taps(a)),
        stride(padded_to_vector<A>(taps)),
        begin(arena.take<int64_t>(results)),
        count(arena.take<int64_t>(results)),
        weight(arena.take<A>(results * stride)) {}

  void fill(const SampleAxis& a, bool adjoint) {
    for (int64_t i = 0; i < results * stride; ++i) weight[i] = 0;
    for (int64_t r = 0; r < results; ++r) begin[r] = count[r] = 0;
    for (int64_t o = 0; o < a.out; ++o) {
      Taps t = taps_of(a, o);
      normalise(a, t);
      if (!adjoint) {
        begin[o] = t.begin;
        count[o] = t.end - t.begin;
      }
      for (int64_t i = t.begin; i < t.end; ++i) {
        const A w = static_cast<A>(tap_weight(a, t, i - t.begin));
        if (!adjoint) {
          weight[o * stride + i - t.begin] = w;
        } else {
          if (count[i] == 0) begin[i] = o;
          weight[i * stride + o - begin[i]] = w;
          count[i] = o - begin[i] + 1;
        }
      }
    }
  }
};

// A banded matrix over rows of pixels of few channels, turned so that a vector holds neighbouring
// result elements: element e = r · channels + c takes its tap k from
// source element origin[e / lanes] + offset[e] + k · channels, with weight[k · padded + e].
template <typename A>
struct Lanes {
  int64_t elements;
  int64_t padded;
  int64_t taps;
  bool near;  // every offset is less than the lanes of a vector: a permutation of one load serves
  int64_t* origin;
  LaneNumber<A>* offset;
  A* weight;

  Lanes(const Banded<A>& m, int64_t channels, Arena& arena)
      : elements(m.results * channels),
        padded(padded_to_vector<A>(elements)),
        taps(m.taps),
        near(true),
        origin(arena.take<int64_t>(padded)),
        offset(arena.take<LaneNumber<A>>(padded)),
        weight(arena.take<A>(padded * taps)) {}

  void fill(const Banded<A>& m, int64_t channels) {
    constexpr int L = kLanes<A>;
    near = true;
    for (int64_t g = 0; g < elements; g += L) {
      int64_t least = m.sources * channels;
      for (int64_t e = g; e < imin(g + L, elements); ++e)
        least = imin(least, m.begin[e / channels] * channels + e % channels);
      origin[g / L] = least;
      for (int64_t e = g; e < g + L; ++e) {
        const int64_t r = e / channels;
        const bool inside = e < elements;
        offset[e] = inside ? static_cast<LaneNumber<A>>(m.begin[r] * channels + e % channels - least) : 0;
        near = near && offset[e] < L;
        for (int64_t k = 0; k < taps; ++k)
          weight[k * padded + e] = inside ? m.weight[r * m.stride + k] : A(0);
      }
    }
  }
};

}  // namespace
}  // namespace cpu
}  // namespace fastops
