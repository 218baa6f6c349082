// Weighted interpolation (linear, cubic, Lanczos; with and without antialiasing) on the CPU, forward
// and adjoint.
//
// Both apply a banded matrix to the rows and another one to the columns. For each result row the
// source rows under its taps are summed into a buffer of accumulators, over vectors along W (· C in
// channels_last); then the buffer is summed along W into the result row. Intermediate values are never
// rounded to the tensor's type.
#include <stdexcept>

#include "../interpolate.h"
#include "banded.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int64_t kMostTurned = 16;  // taps up to which neighbouring results share a vector

// Everything one call needs besides its tensors, laid out in the workspace.
template <typename A>
struct Work {
  int64_t channels;  // that lie side by side in a pixel
  Banded<A> rows;
  Banded<A> columns;
  bool turned;  // columns go through `lanes`
  Lanes<A> lanes;
  int64_t row;      // elements of a source row
  bool sparse;      // few source pixels are read: only those go into the buffer, side by side
  int64_t* pixels;  // sparse: where in the source a result's pixels begin
  int64_t buffer;   // elements of a row buffer: a source row and zeros beyond, which taps of weight 0 read
  A* buffers;

  Work(const InterpolateParams& p, bool adjoint, int threads, Arena& arena)
      : channels(p.channels_last ? p.c : 1),
        rows(axis_h(p), adjoint, arena),
        columns(axis_w(p), adjoint, arena),
        turned(channels < kLanes<A> && columns.taps <= kMostTurned),
        // Laid out whenever some instruction set turns: a workspace fits all of them.
        lanes(columns, channels < kWidest<A> && columns.taps <= kMostTurned ? channels : 0, arena),
        row(columns.sources * channels),
        sparse(channels >= kLanes<A> && 2 * columns.results * columns.taps <= columns.sources),
        pixels(arena.take<int64_t>(columns.results)),
        buffer(padded_to_vector<A>(row + columns.stride * channels) + 2 * kWidest<A>),
        buffers(arena.take<A>(buffer * threads)) {}

  void fill(const InterpolateParams& p, bool adjoint) {
    rows.fill(axis_h(p), adjoint);
    columns.fill(axis_w(p), adjoint);
    if (turned) lanes.fill(columns, channels);
    for (int64_t r = 0; sparse && r < columns.results; ++r) {
      pixels[r] = columns.begin[r];
      columns.begin[r] = r * columns.taps;
    }
  }
};

// ---- down the rows -----------------------------------------------------------------------------

// out[e] (+)= Σ_k w[k] · x[k · stride + e], k < taps, for `count` elements; out is padded to a vector.
template <int taps, bool accumulate, typename T>
void combine(const T* x, int64_t stride, const Acc<T>* w, int64_t count, Acc<T>* out) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  Vec<A> weight[taps];
  for (int k = 0; k < taps; ++k) weight[k] = broadcast(w[k]);
  int64_t e = 0;
  for (; e + L <= count; e += L) {
    Vec<A> v = accumulate ? load(out + e) + weight[0] * load(x + e) : weight[0] * load(x + e);
    for (int k = 1; k < taps; ++k) v += weight[k] * load(x + k * stride + e);
    store(out + e, v);
  }
  if (const int64_t rest = count - e) {
    Vec<A> v = weight[0] * load_first(x + e, rest);
    if (accumulate) v += load(out + e);
    for (int k = 1; k < taps; ++k) v += weight[k] * load_first(x + k * stride + e, rest);
    store(out + e, v);
  }
}

template <typename T>
void combine_rows(const T* x, int64_t stride, const Acc<T>* w, int64_t taps, int64_t count, Acc<T>* out) {
  switch (taps) {
    case 0:
      for (int64_t e = 0; e < count; ++e) out[e] = 0;
      return;
    case 1:
      return combine<1, false>(x, stride, w, count, out);
    case 2:
      return combine<2, false>(x, stride, w, count, out);
    case 3:
      return combine<3, false>(x, stride, w, count, out);
    default:
      combine<4, false>(x, stride, w, count, out);
  }
  int64_t k = 4;
  for (; k + 4 <= taps; k += 4) combine<4, true>(x + k * stride, stride, w + k, count, out);
  for (; k + 2 <= taps; k += 2) combine<2, true>(x + k * stride, stride, w + k, count, out);
  if (k < taps) combine<1, true>(x + k * stride, stride, w + k, count, out);
}

// ---- along a row -------------------------------------------------------------------------------

// Few channels and few taps: a vector of neighbouring results at a time. taps 0: m.taps.
template <int taps, bool near, typename T>
void along_lanes(const Lanes<Acc<T>>& m, int64_t channels, const Acc<T>* buffer, T* y) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  const int64_t count = taps ? taps : m.taps;
  for (int64_t e = 0; e < m.elements; e += L) {
    const A* from = buffer + m.origin[e / L];
    const Mask<A> offset = load_bits<Mask<A>>(m.offset + e);
    Vec<A> sum{};
    for (int64_t k = 0; k < count; ++k) {
      const Vec<A> weight = load(m.weight + k * m.padded + e);
      Vec<A> v;
      if (near) {
        v = permute(load(from + k * channels), offset);
      } else {
        for (int i = 0; i < L; ++i) v[i] = from[offset[i] + k * channels];
      }
      // Where a result has fewer taps, another's neighbour stands there: it may be infinite.
      sum += weight != 0 ? weight * v : Vec<A>{};
    }
    if (e + L <= m.elements)
      store(y + e, sum);
    else
      store_first(y + e, sum, m.elements - e);
  }
}

template <bool near, typename T>
void along_lanes(const Lanes<Acc<T>>& m, int64_t channels, const Acc<T>* buffer, T* y) {
  switch (m.taps) {
    case 1:
    case 2:
      return m.taps == 2 ? along_lanes<2, near>(m, channels, buffer, y)
                         : along_lanes<1, near>(m, channels, buffer, y);
    case 4:
      return along_lanes<4, near>(m, channels, buffer, y);
    default:
      return along_lanes<0, near>(m, channels, buffer, y);
  }
}

// One channel and many taps: a vector of taps at a time.
template <typename T>
void along_taps(const Banded<Acc<T>>& m, const Acc<T>* buffer, T* y) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  for (int64_t r = 0; r < m.results; ++r) {
    const A *from = buffer + m.begin[r], *w = m.weight + r * m.stride;
    Vec<A> sum{};
    for (int64_t k = 0; k < m.count[r]; k += L) {
      const Vec<A> weight = load(w + k);
      sum += weight != 0 ? weight * load(from + k) : Vec<A>{};
    }
    A total = 0;
    for (int i = 0; i < L; ++i) total += sum[i];
    y[r] = from_acc<T>(total);
  }
}

// One pixel with a number of taps known at compile time, over vectors of channels.
template <int taps, typename T>
void pixel(const Acc<T>* from, const Acc<T>* w, int64_t channels, T* y) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  Vec<A> weight[taps];
  for (int k = 0; k < taps; ++k) weight[k] = broadcast(w[k]);
  for (int64_t c = 0; c < channels; c += L) {
    Vec<A> sum = weight[0] * load(from + c);
    for (int k = 1; k < taps; ++k) sum += weight[k] * load(from + k * channels + c);
    if (c + L <= channels)
      store(y + c, sum);
    else
      store_first(y + c, sum, channels - c);
  }
}

template <typename T>
void along_pixels(const Banded<Acc<T>>& m, int64_t channels, const Acc<T>* buffer, T* y) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  for (int64_t r = 0; r < m.results; ++r, y += channels) {
    const A *from = buffer + m.begin[r] * channels, *w = m.weight + r * m.stride;
    const int64_t count = m.count[r];
    switch (count) {
      case 1:
        pixel<1>(from, w, channels, y);
        continue;
      case 2:
        pixel<2>(from, w, channels, y);
        continue;
      case 3:
        pixel<3>(from, w, channels, y);
        continue;
      case 4:
        pixel<4>(from, w, channels, y);
        continue;
    }
    for (int64_t c = 0; c < channels; c += L) {
      Vec<A> sum{};
      for (int64_t k = 0; k < count; ++k) sum += w[k] * load(from + k * channels + c);
      if (c + L <= channels)
        store(y + c, sum);
      else
        store_first(y + c, sum, channels - c);
    }
  }
}

// ---- launchers ---------------------------------------------------------------------------------

void check(const InterpolateParams& p) {
  if (p.in.d != 1 || p.out.d != 1)
    throw std::invalid_argument("fastops: weighted interpolation is 2-d so far; the depth must be 1");
}

template <typename T>
void apply(const InterpolateParams& p, bool adjoint, const T* x, T* y, void* workspace, int threads) {
  using A = Acc<T>;
  check(p);
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  if (planes == 0) return;
  Arena arena(workspace);
  Work<A> work(p, adjoint, threads, arena);
  work.fill(p, adjoint);
  const int64_t channels = work.channels, results = work.rows.results;
  const int64_t cost = work.row * work.rows.taps + work.columns.results * channels * work.columns.taps;
  parallel_for(threads, planes * results, ceil_div(cost, 4), [&](int64_t task, int slot) {
    const int64_t plane = task / results, r = task % results;
    A* buffer = work.buffers + slot * work.buffer;
    const T* from = x + (plane * work.rows.sources + work.rows.begin[r]) * work.row;
    const A* weight = work.rows.weight + r * work.rows.stride;
    const int64_t taps = work.rows.count[r];
    if (work.sparse) {
      for (int64_t i = 0; i < work.columns.results; ++i)
        combine_rows(from + work.pixels[i] * channels, work.row, weight, taps,
                     work.columns.count[i] * channels, buffer + work.columns.begin[i] * channels);
    } else {
      combine_rows(from, work.row, weight, taps, work.row, buffer);
    }
    for (int64_t e = work.row; e < work.buffer; ++e) buffer[e] = 0;
    T* to = y + task * work.columns.results * channels;
    if (work.turned)
      work.lanes.near ? along_lanes<true>(work.lanes, channels, buffer, to)
                      : along_lanes<false>(work.lanes, channels, buffer, to);
    else if (channels == 1)
      along_taps(work.columns, buffer, to);
    else
      along_pixels(work.columns, channels, buffer, to);
  });
}

int64_t workspace_bytes(const InterpolateParams& p, bool adjoint, int threads) {
  check(p);
  Arena arena(nullptr);
  if (p.dtype == DType::kF64)
    Work<double>(p, adjoint, threads, arena);
  else
    Work<float>(p, adjoint, threads, arena);
  return arena.used();
}

}  // namespace

template <>
void interpolate_weighted<kIsa>(const InterpolateParams& p, const void* x, void* y, void* workspace,
                                int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    apply(p, false, static_cast<const T*>(x), static_cast<T*>(y), workspace, threads);
  });
}

template <>
void interpolate_weighted_adjoint<kIsa>(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                        int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    apply(p, true, static_cast<const T*>(dy), static_cast<T*>(dx), workspace, threads);
  });
}

template <>
int64_t interpolate_weighted_workspace<kIsa>(const InterpolateParams& p, int threads) {
  return workspace_bytes(p, false, threads);
}

template <>
int64_t interpolate_weighted_adjoint_workspace<kIsa>(const InterpolateParams& p, int threads) {
  return workspace_bytes(p, true, threads);
}

}  // namespace cpu
}  // namespace fastops
