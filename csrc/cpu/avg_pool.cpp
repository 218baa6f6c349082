// Average pooling and its adjoint on the CPU.
//
// Both are gathers: the forward sums each output's window, the adjoint sums, for each input, the
// outputs whose windows cover it. NCHW runs over planes, channels_last vectorises over channels.
#include "../pool.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// 1 / divisor of output (d, h, w).
template <typename A>
A inverse_divisor(const PoolParams& p, int64_t d, int64_t h, int64_t w) {
  if (p.divisor_override != 0) return A(1) / static_cast<A>(p.divisor_override);
  return A(1) / static_cast<A>(window_count(axis_d(p), d, p.count_include_pad) *
                               window_count(axis_h(p), h, p.count_include_pad) *
                               window_count(axis_w(p), w, p.count_include_pad));
}

// y[o] = scale(o) · Σ x[i] over the window of o, one plane of `channels` interleaved channels.
template <typename T>
void forward_row(const PoolParams& p, int64_t channels, const T* x, T* y, int64_t od, int64_t oh) {
  using A = Acc<T>;
  const Range rd = window(axis_d(p), od), rh = window(axis_h(p), oh);
  for (int64_t ow = 0; ow < p.out.w; ++ow) {
    const Range rw = window(axis_w(p), ow);
    const A scale = inverse_divisor<A>(p, od, oh, ow);
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      const int64_t count = imin(kLanes<A>, channels - c);
      Vec<A> sum{};
      for (int64_t d = rd.begin; d < rd.end; ++d)
        for (int64_t h = rh.begin; h < rh.end; ++h)
          for (int64_t w = rw.begin; w < rw.end; ++w)
            sum += load_first(x + ((d * p.in.h + h) * p.in.w + w) * channels + c, count);
      store_first(y + ow * channels + c, sum * scale, count);
    }
  }
}

template <typename T>
void adjoint_row(const PoolParams& p, int64_t channels, const T* dy, T* dx, int64_t id, int64_t ih) {
  using A = Acc<T>;
  const Range rd = windows_covering(axis_d(p), id), rh = windows_covering(axis_h(p), ih);
  for (int64_t iw = 0; iw < p.in.w; ++iw) {
    const Range rw = windows_covering(axis_w(p), iw);
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      const int64_t count = imin(kLanes<A>, channels - c);
      Vec<A> sum{};
      for (int64_t d = rd.begin; d < rd.end; ++d)
        for (int64_t h = rh.begin; h < rh.end; ++h)
          for (int64_t w = rw.begin; w < rw.end; ++w)
            sum += load_first(dy + ((d * p.out.h + h) * p.out.w + w) * channels + c, count) *
                   inverse_divisor<A>(p, d, h, w);
      store_first(dx + iw * channels + c, sum, count);
    }
  }
}

}  // namespace

template <>
void avg_pool<kIsa>(const PoolParams& p, const void* x, void* y, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
    const int64_t rows = p.out.d * p.out.h, in_plane = volume(p.in) * channels;
    parallel_for(threads, planes * rows, p.out.w * channels * 4, [&](int64_t task, int) {
      const int64_t plane = task / rows, od = task % rows / p.out.h, oh = task % p.out.h;
      forward_row(p, channels, static_cast<const T*>(x) + plane * in_plane,
                  static_cast<T*>(y) + task * p.out.w * channels, od, oh);
    });
  });
}

template <>
void avg_pool_adjoint<kIsa>(const PoolParams& p, const void* dy, void* dx, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
    const int64_t rows = p.in.d * p.in.h, out_plane = volume(p.out) * channels;
    parallel_for(threads, planes * rows, p.in.w * channels * 4, [&](int64_t task, int) {
      const int64_t plane = task / rows, id = task % rows / p.in.h, ih = task % p.in.h;
      adjoint_row(p, channels, static_cast<const T*>(dy) + plane * out_plane,
                  static_cast<T*>(dx) + task * p.in.w * channels, id, ih);
    });
  });
}

}  // namespace cpu
}  // namespace fastops
