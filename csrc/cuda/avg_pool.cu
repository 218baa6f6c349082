// Average pooling and its adjoint on the GPU: gathers, so no atomics and the same bits each run.
//
// A thread has one output (adjoint: one input), or 16 bytes of them where they are aligned: channels of
// a pixel in channels_last, neighbours in a row of a contiguous plane for the usual windows. The average
// of whole planes is a reduction of its own.
#include "avg_planes.h"
#include "rows.h"

namespace fastops {
namespace cuda {
namespace {

// By what windows are divided.
template <typename A>
struct Divisors {
  A all;  // that of every window; 0: they differ
  bool include_pad;

  explicit Divisors(const PoolParams& p) : all(0), include_pad(p.count_include_pad) {
    if (p.divisor_override != 0)
      all = static_cast<A>(p.divisor_override);
    else if (!p.adaptive && whole(axis_d(p)) && whole(axis_h(p)) && whole(axis_w(p)))
      all = static_cast<A>(p.kernel.d * p.kernel.h * p.kernel.w);
  }
  // The divisor of window (od, oh, ow), where they differ, is row(w, od, oh) · column(w, ow).
  template <typename I>
  __device__ A row(const Windows<I>& w, I od, I oh) const {
    return static_cast<A>(w.d.counted(od, include_pad)) * static_cast<A>(w.h.counted(oh, include_pad));
  }
  template <typename I>
  __device__ A column(const Windows<I>& w, I ow) const {
    return static_cast<A>(w.w.counted(ow, include_pad));
  }

 private:
  // The first and the last window count all of their kernel, so those between them do.
  bool whole(const PoolAxis& a) const {
    return a.out == 0 || (window_count(a, 0, include_pad) == a.kernel &&
                          window_count(a, a.out - 1, include_pad) == a.kernel);
  }
};

// ---- forward -----------------------------------------------------------------------------------

template <typename T, int width, typename I>
__global__ void avg_pool_kernel(Windows<I> w, Divisors<Acc<T>> divisors, int64_t work,
                                const Pack<T, width>* x, Pack<T, width>* y) {
  using A = Acc<T>;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> o = w.output(static_cast<I>(i));
    const Taps<I> td = w.d.taps(o.d), th = w.h.taps(o.h), tw = w.w.taps(o.w);
    A sum[width] = {};
    for (I d = td.first; d < td.first + td.count; ++d)
      for (I h = th.first; h < th.first + th.count; ++h) {
        const Pack<T, width>* from = x + w.input_row(o, d, h) + tw.first * w.groups;
        for (I k = 0; k < tw.count; ++k, from += w.groups) {
          const Pack<T, width> v = *from;
#pragma unroll
          for (int u = 0; u < width; ++u) sum[u] += to_acc(v.v[u]);
        }
      }
    const A divisor = divisors.all != 0 ? divisors.all : divisors.row(w, o.d, o.h) * divisors.column(w, o.w);
    const A scale = A(1) / divisor;
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(sum[u] * scale);
    y[i] = result;
  }
}

// The same for a run of outputs in a row (rows.h), which has all taps along the row, some outside.
template <typename T, typename Window, int run>
__global__ void avg_pool_rows_kernel(Rows<run> rows, Divisors<Acc<T>> divisors, int64_t work, const T* x,
                                     Pack<T, run>* y) {
  using A = Acc<T>;
  constexpr int begin = -Window::pad, end = Window::stride * (run - 1) + Window::kernel - Window::pad;
  const Windows<int32_t>& w = rows.w;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<int32_t> o = rows.output(static_cast<int32_t>(i));
    const Taps<int32_t> td = w.d.taps(o.d), th = w.h.taps(o.h);
    A sum[run] = {};
    for (int32_t d = td.first; d < td.first + td.count; ++d)
      for (int32_t h = th.first; h < th.first + th.count; ++h) {
        const RowPart<T, begin, end, run> row(x + w.input_row(o, d, h), o.w * Window::stride, w.w.in,
                                              from_acc<T>(0));
#pragma unroll
        for (int u = 0; u < run; ++u)
#pragma unroll
          for (int l = 0; l < Window::kernel; ++l)
            sum[u] += to_acc(row[u * Window::stride - Window::pad + l]);
      }
    const A row_divisor = divisors.all != 0 ? A(1) : divisors.row(w, o.d, o.h);
    Pack<T, run> result;
#pragma unroll
    for (int u = 0; u < run; ++u) {
      const A divisor = divisors.all != 0 ? divisors.all : row_divisor * divisors.column(w, o.w + u);
      result.v[u] = from_acc<T>(sum[u] * (A(1) / divisor));
    }
    y[i] = result;
  }
}

// ---- adjoint -----------------------------------------------------------------------------------

template <typename T, int width, typename I>
__global__ void avg_pool_adjoint_kernel(Windows<I> w, Divisors<Acc<T>> divisors, int64_t work,
                                        const Pack<T, width>* dy, Pack<T, width>* dx) {
  using A = Acc<T>;
  const bool differ = divisors.all == 0;
  const A all = differ ? A(1) : A(1) / divisors.all;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> at = w.input(static_cast<I>(i));
    const Covering<I> cd = w.d.covering(at.d), ch = w.h.covering(at.h), cw = w.w.covering(at.w);
    A sum[width] = {};
    for (I d = cd.begin; d < cd.end; ++d)
      for (I h = ch.begin; h < ch.end; ++h) {
        const Pack<T, width>* row = dy + w.output_row(at, d, h);
        const A row_divisor = differ ? divisors.row(w, d, h) : A(1);
        for (I o = cw.begin; o < cw.end; ++o) {
          const Pack<T, width> v = row[o * w.groups];
          const A scale = differ ? A(1) / (row_divisor * divisors.column(w, o)) : all;
#pragma unroll
          for (int u = 0; u < width; ++u) sum[u] += to_acc(v.v[u]) * scale;
        }
      }
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) result.v[u] = from_acc<T>(sum[u]);
    dx[i] = result;
  }
}

template <typename T, typename Window, int run>
__global__ void avg_pool_adjoint_rows_kernel(Rows<run> rows, Divisors<Acc<T>> divisors, int64_t work,
                                             const T* dy, Pack<T, run>* dx) {
  using A = Acc<T>;
  using Outputs = OutputsOf<Window, run>;
  const Windows<int32_t>& w = rows.w;
  const bool differ = divisors.all == 0;
  const A all = differ ? A(1) : A(1) / divisors.all;
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<int32_t> at = rows.input(static_cast<int32_t>(i));
    const Covering<int32_t> cd = w.d.covering(at.d), ch = w.h.covering(at.h);
    const int32_t first = at.w / Window::stride;
    A sum[run] = {};
    for (int32_t d = cd.begin; d < cd.end; ++d)
      for (int32_t h = ch.begin; h < ch.end; ++h) {
        const RowPart<T, Outputs::begin, Outputs::end, run / Window::stride> row(
            dy + w.output_row(at, d, h), first, w.w.out, from_acc<T>(0));
        const A row_divisor = differ ? divisors.row(w, d, h) : A(1);
        A scale[Outputs::end - Outputs::begin];
#pragma unroll
        for (int o = Outputs::begin; o < Outputs::end; ++o) {
          const bool exists = first + o >= 0 && first + o < w.w.out;
          scale[o - Outputs::begin] =
              differ && exists ? A(1) / (row_divisor * divisors.column(w, first + o)) : all;
        }
#pragma unroll
        for (int u = 0; u < run; ++u)
#pragma unroll
          for (int o = Outputs::first(u); o <= Outputs::last(u); ++o)
            sum[u] += to_acc(row[o]) * scale[o - Outputs::begin];
      }
    Pack<T, run> result;
#pragma unroll
    for (int u = 0; u < run; ++u) result.v[u] = from_acc<T>(sum[u]);
    dx[i] = result;
  }
}

}  // namespace

void avg_pool(const PoolParams& p, const void* x, void* y, void* stream) {
  if (p.n * p.c * volume(p.out) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (averages_planes(p)) return average_all<T>(p, x, y, stream);
    constexpr int run = 16 / sizeof(T);
    const bool done = dispatch_rows<T>(p, address(x) | address(y), [&](auto window, auto rows) {
      const int64_t work = planes_of(p) * volume(p.out) / run;
      launch("avg_pool", avg_pool_rows_kernel<T, decltype(window), run>, blocks_for(work), kThreads, 0,
             stream, rows, Divisors<Acc<T>>(p), work, static_cast<const T*>(x),
             static_cast<Pack<T, run>*>(y));
    });
    if (done) return;
    dispatch_windows<T>(p, address(x) | address(y), [&](auto constant, auto windows) {
      constexpr int width = decltype(constant)::value;
      const int64_t work = planes_of(p) * volume(p.out) * windows.groups;
      launch("avg_pool", avg_pool_kernel<T, width, decltype(windows.groups)>, blocks_for(work), kThreads, 0,
             stream, windows, Divisors<Acc<T>>(p), work, static_cast<const Pack<T, width>*>(x),
             static_cast<Pack<T, width>*>(y));
    });
  });
}

void avg_pool_adjoint(const PoolParams& p, const void* dy, void* dx, void* stream) {
  if (p.n * p.c * volume(p.in) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int run = 16 / sizeof(T);
    const bool done = dispatch_rows<T>(p, address(dy) | address(dx), [&](auto window, auto rows) {
      const int64_t work = planes_of(p) * volume(p.in) / run;
      launch("avg_pool_adjoint", avg_pool_adjoint_rows_kernel<T, decltype(window), run>, blocks_for(work),
             kThreads, 0, stream, rows, Divisors<Acc<T>>(p), work, static_cast<const T*>(dy),
             static_cast<Pack<T, run>*>(dx));
    });
    if (done) return;
    dispatch_windows<T>(p, address(dy) | address(dx), [&](auto constant, auto windows) {
      constexpr int width = decltype(constant)::value;
      const int64_t work = planes_of(p) * volume(p.in) * windows.groups;
      launch("avg_pool_adjoint", avg_pool_adjoint_kernel<T, width, decltype(windows.groups)>,
             blocks_for(work), kThreads, 0, stream, windows, Divisors<Acc<T>>(p), work,
             static_cast<const Pack<T, width>*>(dy), static_cast<Pack<T, width>*>(dx));
    });
  });
}

}  // namespace cuda
}  // namespace fastops
