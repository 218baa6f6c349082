// The derivative of max pooling at fixed positions, and its transpose, on the GPU.
//
// The transpose is a gather too: an input looks at the positions of the windows that cover it and sums
// those outputs that name it, in raster order. Nothing is written twice, so no atomics.
#include "../indexed.h"
#include "positions.h"
#include "rows.h"

namespace fastops {
namespace cuda {
namespace {

template <typename T, int width, typename I, typename P>
__global__ void gather_kernel(Windows<I> w, I in_plane, int64_t work, const T* x,
                              const Pack<P, width>* positions, Pack<T, width>* y) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> o = w.output(static_cast<I>(i));
    const Pack<P, width> where = positions[i];
    const I plane = o.plane * in_plane;  // in_plane and positions count pixels, groups of packs each
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) {
      std::conditional_t<std::is_same<P, uint8_t>::value, I, P> pixel = where.v[u];
      if constexpr (std::is_same<P, uint8_t>::value)
        pixel = where.v[u] == kNoTap ? -1 : w.position_of_tap(o, pixel);
      const bool inside = pixel >= 0 && pixel < in_plane;
      const I from = inside ? plane + static_cast<I>(pixel) : 0;
      result.v[u] = inside ? x[(from * w.groups + o.group) * width + u] : from_acc<T>(0);
    }
    y[i] = result;
  }
}

template <typename T, int width, typename I, typename P>
__global__ void scatter_add_kernel(Windows<I> w, int64_t work, const Pack<T, width>* dy,
                                   const Pack<P, width>* positions, Pack<T, width>* dx) {
  using A = Acc<T>;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> at = w.input(static_cast<I>(i));
    constexpr bool numbers = std::is_same<P, uint8_t>::value;
    const P position = static_cast<P>((at.d * w.h.in + at.h) * w.w.in + at.w);
    const Covering<I> cd = w.d.covering(at.d), ch = w.h.covering(at.h), cw = w.w.covering(at.w);
    A sum[width] = {};
    for (I d = cd.begin; d < cd.end; d += cd.step)
      for (I h = ch.begin; h < ch.end; h += ch.step) {
        const I row = w.output_row(at, d, h);
        const I taps = numbers ? w.tap_number(w.d.tap_at(d, at.d), w.h.tap_at(h, at.h), 0) : 0;
        for (I o = cw.begin; o < cw.end; o += cw.step) {
          const I from = row + o * w.groups;
          const Pack<P, width> where = positions[from];
          const Pack<T, width> v = dy[from];
          const P here = numbers ? static_cast<P>(taps + w.w.tap_at(o, at.w)) : position;
#pragma unroll
          for (int u = 0; u < width; ++u) sum[u] += where.v[u] == here ? to_acc(v.v[u]) : A(0);
        }
      }
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(sum[u]);
    dx[i] = result;
  }
}

// The same for a run of inputs in a row (rows.h).
template <typename T, typename Window, int run, typename P>
__global__ void scatter_add_rows_kernel(Rows<run> rows, int64_t work, const T* dy, const P* positions,
                                        Pack<T, run>* dx) {
  using A = Acc<T>;
  using Outputs = OutputsOf<Window, run>;
  constexpr bool numbers = std::is_same<P, uint8_t>::value;
  const Windows<int32_t>& w = rows.w;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<int32_t> at = rows.input(static_cast<int32_t>(i));
    const Covering<int32_t> cd = w.d.covering(at.d), ch = w.h.covering(at.h);
    const int32_t first = at.w / Window::stride, position = (at.d * w.h.in + at.h) * w.w.in + at.w;
    A sum[run] = {};
    for (int32_t d = cd.begin; d < cd.end; d += cd.step)
      for (int32_t h = ch.begin; h < ch.end; h += ch.step) {
        const int32_t row = w.output_row(at, d, h);
        const RowPart<T, Outputs::begin, Outputs::end, run / Window::stride> v(dy + row, first, w.w.out,
                                                                               from_acc<T>(0));
        const RowPart<P, Outputs::begin, Outputs::end, run / Window::stride> where(positions + row, first,
                                                                                   w.w.out, P(0));
        const int32_t taps = numbers ? w.tap_number(w.d.tap_at(d, at.d), w.h.tap_at(h, at.h), 0) : 0;
#pragma unroll
        for (int u = 0; u < run; ++u)
#pragma unroll
          for (int o = Outputs::first(u); o <= Outputs::last(u); ++o) {
            const int32_t here = numbers ? taps + u + Window::pad - o * Window::stride : position + u;
            sum[u] += where[o] == static_cast<P>(here) ? to_acc(v[o]) : A(0);
          }
      }
    Pack<T, run> result;
#pragma unroll
    for (int u = 0; u < run; ++u) result.v[u] = from_acc<T>(sum[u]);
    dx[i] = result;
  }
}

// Calls f(Type<T>{}, Type<P>{}).
template <typename F>
void dispatch_types(const PoolParams& p, F f) {
  dispatch_floating(p.dtype,
                    [&](auto type) { dispatch_positions(p.positions, [&](auto index) { f(type, index); }); });
}

}  // namespace

void gather(const PoolParams& p, const void* x, const void* positions, void* y, void* stream) {
  if (p.n * p.c * volume(p.out) == 0) return;
  dispatch_types(p, [&](auto type, auto index) {
    using T = typename decltype(type)::type;
    using P = typename decltype(index)::type;
    // x is read by elements, so its address does not matter.
    dispatch_windows<T>(p, address(positions) | address(y), [&](auto constant, auto windows) {
      constexpr int width = decltype(constant)::value;
      using I = decltype(windows.groups);
      const int64_t work = planes_of(p) * volume(p.out) * windows.groups;
      launch("gather", gather_kernel<T, width, I, P>, blocks_for(work), kThreads, 0, stream, windows,
             volume(p.in), work, static_cast<const T*>(x), static_cast<const Pack<P, width>*>(positions),
             static_cast<Pack<T, width>*>(y));
    });
  });
}

void scatter_add(const PoolParams& p, const void* dy, const void* positions, void* dx, void* stream) {
  if (p.n * p.c * volume(p.in) == 0) return;
  dispatch_types(p, [&](auto type, auto index) {
    using T = typename decltype(type)::type;
    using P = typename decltype(index)::type;
    const uintptr_t addresses = address(dy) | address(positions) | address(dx);
    constexpr int run = 16 / sizeof(T);
    const bool done = dispatch_rows<T>(p, addresses, [&](auto window, auto rows) {
      const int64_t work = planes_of(p) * volume(p.in) / run;
      launch("scatter_add", scatter_add_rows_kernel<T, decltype(window), run, P>, blocks_for(work), kThreads,
             0, stream, rows, work, static_cast<const T*>(dy), static_cast<const P*>(positions),
             static_cast<Pack<T, run>*>(dx));
    });
    if (done) return;
    dispatch_windows<T>(p, addresses, [&](auto constant, auto windows) {
      constexpr int width = decltype(constant)::value;
      const int64_t work = planes_of(p) * volume(p.in) * windows.groups;
      launch("scatter_add", scatter_add_kernel<T, width, decltype(windows.groups), P>, blocks_for(work),
             kThreads, 0, stream, windows, work, static_cast<const Pack<T, width>*>(dy),
             static_cast<const Pack<P, width>*>(positions), static_cast<Pack<T, width>*>(dx));
    });
  });
}

}  // namespace cuda
}  // namespace fastops
