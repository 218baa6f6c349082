// The weights of a convolution as the matrix product wants them: as they are, as rows, or in panels.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Whether T is narrower than what it is accumulated in.
template <typename T>
constexpr bool kNarrow = sizeof(T) != sizeof(Acc<T>);

// Order of k. Contiguous weights of an NCHW call are read as they lie, tap fastest.
inline bool tap_fastest(const TapConv& t) { return !t.p->channels_last && !t.p->weight_channels_last; }

// The weights as they are may serve as rows A[o][k].
template <typename T>
bool weights_as_they_are(const TapConv& t) {
  return !kNarrow<T> && tap_fastest(t) && !t.input_grad;
}

// Packs result channels [o0, o1) of one group and phase: rows to[o][k], or panels to[o / nr][k][o % nr]
// with zeros past the last channel.
template <typename T>
void pack_weights(const TapConv& t, const TapAxes& a, const T* w, Acc<T>* to, int64_t o0, int64_t o1) {
  using A = Acc<T>;
  const int64_t taps = tap_count(a), depth = taps * t.inner;
  const bool panels = t.p->channels_last;
  const int64_t nr = kTileColumns<A>;
  const int64_t unit = panels ? nr : 1;  // from one k to the next
  const int64_t k_channel = tap_fastest(t) ? taps : 1, k_tap = tap_fastest(t) ? 1 : t.inner;
  const auto row = [&](int64_t o) { return panels ? to + o / nr * depth * nr + o % nr : to + o * depth; };
  // The loop over what lies closest in memory is the innermost.
  if (tap_fastest(t)) {
    const Extent& kernel = t.p->kernel;
    for (int64_t i = 0; i < t.inner; ++i)
      for (int64_t o = o0; o < o1; ++o) {
        const T* from = w + o * t.w_outer + i * t.w_inner;
        A* out = row(o) + i * taps;
        for (int64_t d = 0; d < a.d.taps; ++d)
          for (int64_t h = 0; h < a.h.taps; ++h) {
            const T* line =
                from + ((a.d.tap0 + d * a.d.tap_step) * kernel.h + a.h.tap0 + h * a.h.tap_step) * kernel.w +
                a.w.tap0;
            for (int64_t j = 0; j < a.w.taps; ++j) *out++ = to_acc(line[j * a.w.tap_step]);
          }
      }
  } else {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* from = w + tap_at(t, a, tap).index * t.w_tap;
      const int64_t k = tap * k_tap;
      if (t.w_outer == 1 && panels)  // [o0, o1) is one panel
        for (int64_t i = 0; i < t.inner; ++i)
          copy_row(from + o0 + i * t.w_inner, 1, row(o0) + (k + i * k_channel) * nr, o1 - o0);
      else
        for (int64_t o = o0; o < o1; ++o)
          for (int64_t i = 0; i < t.inner; ++i)
            row(o)[(k + i * k_channel) * unit] = to_acc(from[o * t.w_outer + i * t.w_inner]);
    }
  }
  if (panels)
    for (int64_t o = o1; o % nr != 0; ++o)
      for (int64_t k = 0; k < depth; ++k) to[o / nr * depth * nr + k * nr + o % nr] = A(0);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
