// Average pooling and its adjoint on the GPU: gathers, so no atomics and the same bits each run.
//
// A thread has one output (adjoint: one input); in channels_last 16 bytes of channels of it, where
// they are aligned. The average of whole planes is a reduction by several threads in a fixed order.
#include "primitives.cuh"
#include "windows.h"

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

// ---- whole planes --------------------------------------------------------------------------------

// A plane is `packs` packs without a gap; `team` threads of a block, one warp or all, have one plane.
template <typename T, typename P, int team>
__global__ void average_planes_kernel(Acc<T> scale, int64_t planes, int64_t packs, const P* x, T* y) {
  using A = Acc<T>;
  constexpr int width = sizeof(P) / sizeof(T);
  constexpr int teams = kThreads / team, warps = team / 32;
  FASTOPS_SHARED(partial, A[kThreads / 32]);
  const int member = threadIdx.x % team, warp = threadIdx.x / 32;
  for (int64_t first = blockIdx.x * int64_t{teams}; first < planes; first += gridDim.x * int64_t{teams}) {
    const int64_t plane = first + threadIdx.x / team;
    A sums[width] = {};
    if (plane < planes)
      for (int64_t i = member; i < packs; i += team) {
        const P v = x[plane * packs + i];
#pragma unroll
        for (int u = 0; u < width; ++u) sums[u] += to_acc(v.v[u]);
      }
    A sum = sums[0];
#pragma unroll
    for (int u = 1; u < width; ++u) sum += sums[u];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (warps > 1) {
      if (threadIdx.x % 32 == 0) partial[warp] = sum;
      __syncthreads();
      sum = 0;
      for (int j = 0; j < warps; ++j) sum += partial[j];
      __syncthreads();  // the next plane's sums overwrite these
    }
    if (member == 0 && plane < planes) y[plane] = from_acc<T>(sum * scale);
  }
}

// The same for channels_last: `lanes` neighbouring threads (a power of two, at most 32) have a group of
// channels each; the kThreads / lanes slices of the block share out the pixels.
template <typename T, typename P>
__global__ void average_images_kernel(Acc<T> scale, int64_t images, int64_t pixels, int64_t groups, int lanes,
                                      const P* x, P* y) {
  using A = Acc<T>;
  constexpr int width = sizeof(P) / sizeof(T);
  FASTOPS_SHARED(partial, A[width][kThreads]);
  const int lane = threadIdx.x % lanes, slice = threadIdx.x / lanes, slices = kThreads / lanes;
  const int64_t parts = (groups + lanes - 1) / lanes;
  for (int64_t part = blockIdx.x; part < images * parts; part += gridDim.x) {
    const int64_t image = part / parts, group = part % parts * lanes + lane;
    A sums[width] = {};
    if (group < groups)
      for (int64_t i = slice; i < pixels; i += slices) {
        const P v = x[(image * pixels + i) * groups + group];
#pragma unroll
        for (int u = 0; u < width; ++u) sums[u] += to_acc(v.v[u]);
      }
#pragma unroll
    for (int u = 0; u < width; ++u) partial[u][threadIdx.x] = sums[u];
    __syncthreads();
    if (slice == 0 && group < groups) {
      P result;
#pragma unroll
      for (int u = 0; u < width; ++u) {
        A sum = 0;
        for (int s = 0; s < slices; ++s) sum += partial[u][s * lanes + lane];
        result.v[u] = from_acc<T>(sum * scale);
      }
      y[image * groups + group] = result;
    }
    __syncthreads();  // the next part's sums overwrite these
  }
}

// Fewer elements than this are left to one thread per output.
constexpr int64_t kLeastPlane = 32;
// From so many on, a plane has a block instead of a warp: 8 accesses for each of its threads.
constexpr int64_t kLargePlane = 8 * kThreads;

bool is_whole(const PoolAxis& a) {
  if (a.out != 1) return false;
  const Range r = window(a, 0);
  return r.begin == 0 && r.end == a.in;
}
bool averages_planes(const PoolParams& p) {
  return volume(p.in) >= kLeastPlane && is_whole(axis_d(p)) && is_whole(axis_h(p)) && is_whole(axis_w(p));
}

template <typename T, typename P>
void average_planes(const PoolParams& p, Acc<T> scale, const void* x, void* y, void* stream) {
  const int64_t planes = p.n * p.c, packs = volume(p.in) / static_cast<int64_t>(sizeof(P) / sizeof(T));
  const bool large = packs >= kLargePlane;
  const int64_t teams = large ? 1 : kThreads / 32;
  launch("avg_pool", large ? average_planes_kernel<T, P, kThreads> : average_planes_kernel<T, P, 32>,
         blocks_for(ceil_div(planes, teams) * kThreads), kThreads, 0, stream, scale, planes, packs,
         static_cast<const P*>(x), static_cast<T*>(y));
}
template <typename T, typename P>
void average_images(const PoolParams& p, Acc<T> scale, const void* x, void* y, void* stream) {
  const int64_t groups = p.c / static_cast<int64_t>(sizeof(P) / sizeof(T));
  int lanes = 1;
  while (lanes < 32 && lanes < groups) lanes *= 2;
  launch("avg_pool", average_images_kernel<T, P>, blocks_for(p.n * ceil_div(groups, lanes) * kThreads),
         kThreads, 0, stream, scale, p.n, volume(p.in), groups, lanes, static_cast<const P*>(x),
         static_cast<P*>(y));
}

template <typename T>
void average_all(const PoolParams& p, const void* x, void* y, void* stream) {
  using A = Acc<T>;
  const bool pad = p.count_include_pad;
  const A divisor = p.divisor_override != 0
                        ? A(p.divisor_override)
                        : A(window_count(axis_d(p), 0, pad) * window_count(axis_h(p), 0, pad) *
                            window_count(axis_w(p), 0, pad));
  const bool images = p.channels_last && p.c > 1;
  const auto average = [&](auto pack) {
    using P = typename decltype(pack)::type;
    (images ? average_images<T, P> : average_planes<T, P>)(p, 1 / divisor, x, y, stream);
  };
  // The size of a pack follows from the shape alone, and the order of summation from that size: the
  // result does not depend on the addresses.
  constexpr int width = 16 / sizeof(T);
  const uintptr_t addresses = images ? address(x) | address(y) : address(x);
  if ((images ? p.c : volume(p.in)) % width != 0)
    average(Type<Pack<T, 1>>{});
  else if (addresses % 16 == 0)
    average(Type<Pack<T, width>>{});
  else
    average(Type<LoosePack<T, width>>{});
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

}  // namespace

void avg_pool(const PoolParams& p, const void* x, void* y, void* stream) {
  if (p.n * p.c * volume(p.out) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (averages_planes(p)) return average_all<T>(p, x, y, stream);
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
