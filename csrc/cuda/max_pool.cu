// Max pooling on the GPU: values alone, or values and where they were found. A thread has one output;
// in channels_last 16 bytes of channels of it, where they are aligned.
#include <cmath>

#include "positions.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// P: how positions are said, or NoPositions.
template <typename T, int width, typename I, typename P>
__global__ void max_pool_kernel(Windows<I> w, int64_t work, const Pack<T, width>* x, Pack<T, width>* y,
                                Pack<P, width>* positions) {
  using A = Acc<T>;
  constexpr bool wanted = !std::is_same<P, NoPositions>::value, numbers = std::is_same<P, uint8_t>::value;
  const I step = numbers ? 1 : w.w.dilation;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> o = w.output(static_cast<I>(i));
    const Taps<I> td = w.d.taps(o.d), th = w.h.taps(o.h), tw = w.w.taps(o.w);
    // A window of nothing but -inf has its maximum at its first element; one without elements at -1.
    const bool some = td.count > 0 && th.count > 0 && tw.count > 0;
    const I inside = numbers ? w.tap_number(td.skipped, th.skipped, tw.skipped)
                             : (td.first * w.h.in + th.first) * w.w.in + tw.first;
    const I start = some ? inside : -1;
    A best[width];
    I where[width];
#pragma unroll
    for (int u = 0; u < width; ++u) best[u] = -static_cast<A>(INFINITY), where[u] = start;
    I d = td.first;
    for (I j = 0; j < td.count; ++j, d += w.d.dilation) {
      I h = th.first;
      for (I k = 0; k < th.count; ++k, h += w.h.dilation) {
        const Pack<T, width>* from = x + w.input_row(o, d, h) + tw.first * w.groups;
        I here = numbers ? w.tap_number(td.skipped + j, th.skipped + k, tw.skipped)
                         : (d * w.h.in + h) * w.w.in + tw.first;
        for (I l = 0; l < tw.count; ++l, from += w.w.dilation * w.groups, here += step) {
          const Pack<T, width> v = *from;
#pragma unroll
          for (int u = 0; u < width; ++u) {
            // Of equal values the first stays, of NaNs the last.
            const A value = to_acc(v.v[u]);
            const bool wins = value > best[u] || value != value;
            best[u] = wins ? value : best[u];
            if (wanted) where[u] = wins ? here : where[u];
          }
        }
      }
    }
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(best[u]);
    y[i] = result;
    if constexpr (wanted) {
      Pack<P, width> found;
#pragma unroll
      for (int u = 0; u < width; ++u) found.v[u] = static_cast<P>(where[u]);
      positions[i] = found;
    }
  }
}

template <typename T, typename P>
void max_pool_typed(const PoolParams& p, const void* x, void* y, void* positions, void* stream) {
  dispatch_windows<T>(p, address(x) | address(y) | address(positions), [&](auto constant, auto windows) {
    constexpr int width = decltype(constant)::value;
    const int64_t work = planes_of(p) * volume(p.out) * windows.groups;
    launch("max_pool", max_pool_kernel<T, width, decltype(windows.groups), P>, blocks_for(work), kThreads, 0,
           stream, windows, work, static_cast<const Pack<T, width>*>(x), static_cast<Pack<T, width>*>(y),
           static_cast<Pack<P, width>*>(positions));
  });
}

}  // namespace

void max_pool(const PoolParams& p, const void* x, void* y, void* positions, void* stream) {
  if (p.n * p.c * volume(p.out) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (positions == nullptr) return max_pool_typed<T, NoPositions>(p, x, y, positions, stream);
    dispatch_positions(p.positions, [&](auto index) {
      max_pool_typed<T, typename decltype(index)::type>(p, x, y, positions, stream);
    });
  });
}

}  // namespace cuda
}  // namespace fastops
