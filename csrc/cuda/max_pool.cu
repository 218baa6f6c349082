// Max pooling on the GPU: values alone, or values and where they were found. A thread has one output, or 16
// bytes of them where they are aligned: channels of a pixel in channels_last, neighbours in a row of a
// contiguous plane for the usual windows.
#include <cmath>

#include "positions.h"
#include "rows.h"

namespace fastops {
namespace cuda {
namespace {

// Whether a value takes the place of the best of those before it: of equal ones the first stays, of NaNs
// the last.
template <typename A>
__device__ inline bool beats(A value, A best) {
  return value > best || value != value;
}

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
            const A value = to_acc(v.v[u]);
            const bool wins = beats(value, best[u]);
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

// The same for a run of outputs in a row (rows.h), which has all taps along the row, some outside.
template <typename T, typename Window, int run, typename P>
__global__ void max_pool_rows_kernel(Rows<run> rows, int64_t work, const T* x, Pack<T, run>* y,
                                     Pack<P, run>* positions) {
  using A = Acc<T>;
  constexpr int begin = -Window::pad, end = Window::stride * (run - 1) + Window::kernel - Window::pad;
  constexpr bool wanted = !std::is_same<P, NoPositions>::value, numbers = std::is_same<P, uint8_t>::value;
  constexpr int step = numbers ? 0 : Window::stride;  // from output to output
  const Windows<int32_t>& w = rows.w;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<int32_t> o = rows.output(static_cast<int32_t>(i));
    const Taps<int32_t> td = w.d.taps(o.d), th = w.h.taps(o.h);
    // Where the first tap of the first output is, in a row of the window's taps or of the plane.
    const auto row_of = [&](int32_t j, int32_t k) {
      const int32_t d = td.first + j * w.d.dilation, h = th.first + k * w.h.dilation;
      return numbers ? w.tap_number(td.skipped + j, th.skipped + k, 0)
                     : (d * w.h.in + h) * w.w.in + o.w * Window::stride - Window::pad;
    };
    const bool some = td.count > 0 && th.count > 0;
    A best[run];
    int32_t where[run];
#pragma unroll
    for (int u = 0; u < run; ++u) {
      const int32_t place = (o.w + u) * Window::stride - Window::pad;
      best[u] = -static_cast<A>(INFINITY);
      where[u] = some ? row_of(0, 0) + u * step + (place < 0 ? -place : 0) : -1;
    }
    for (int32_t j = 0; j < td.count; ++j)
      for (int32_t k = 0; k < th.count; ++k) {
        const T* from = x + w.input_row(o, td.first + j * w.d.dilation, th.first + k * w.h.dilation);
        // -inf never wins.
        const RowPart<T, begin, end, run> row(from, o.w * Window::stride, w.w.in, from_acc<T>(-INFINITY));
        const int32_t here = row_of(j, k);
#pragma unroll
        for (int u = 0; u < run; ++u)
#pragma unroll
          for (int l = 0; l < Window::kernel; ++l) {
            const A value = to_acc(row[u * Window::stride - Window::pad + l]);
            const bool wins = beats(value, best[u]);
            best[u] = wins ? value : best[u];
            if (wanted) where[u] = wins ? here + u * step + l : where[u];
          }
      }
    Pack<T, run> result;
#pragma unroll
    for (int u = 0; u < run; ++u) result.v[u] = from_acc<T>(best[u]);
    y[i] = result;
    if constexpr (wanted) {
      Pack<P, run> found;
#pragma unroll
      for (int u = 0; u < run; ++u) found.v[u] = static_cast<P>(where[u]);
      positions[i] = found;
    }
  }
}

template <typename T, typename P>
void max_pool_typed(const PoolParams& p, const void* x, void* y, void* positions, void* stream) {
  const uintptr_t addresses = address(x) | address(y) | address(positions);
  constexpr int run = 16 / sizeof(T);
  const bool done = dispatch_rows<T>(p, addresses, [&](auto window, auto rows) {
    const int64_t work = planes_of(p) * volume(p.out) / run;
    launch("max_pool", max_pool_rows_kernel<T, decltype(window), run, P>, blocks_for(work), kThreads, 0,
           stream, rows, work, static_cast<const T*>(x), static_cast<Pack<T, run>*>(y),
           static_cast<Pack<P, run>*>(positions));
  });
  if (done) return;
  dispatch_windows<T>(p, addresses, [&](auto constant, auto windows) {
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
