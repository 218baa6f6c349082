// Nearest interpolation and its adjoint on the GPU: gathers, so no atomics and the same bits each run.
#include "../interpolate.h"
#include "dispatch.h"
#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

// What kernels need of the params: coordinates are computed with steps, which cost divisions.
struct Axes {
  SampleAxis d, h, w;
};

Axes axes(const InterpolateParams& p) { return {axis_d(p), axis_h(p), axis_w(p)}; }

// Positions of a dense tensor (planes, d, h, w, channels), from an index that counts them all.
struct Position {
  int64_t plane, d, h, w, c;
};

template <typename I>
__device__ inline Position position_of(I index, I d, I h, I w, I channels) {
  Position at;
  at.c = index % channels;
  index /= channels;
  at.w = index % w;
  index /= w;
  at.h = index % h;
  index /= h;
  at.d = index % d;
  at.plane = index / d;
  return at;
}

// ---- forward -----------------------------------------------------------------------------------

// A pixel is `channels` chunks of up to 16 bytes. I: an unsigned type that holds `work`.
template <typename Chunk, typename I>
__global__ void nearest_kernel(Axes a, int64_t channels, int64_t work, const Chunk* x, Chunk* y) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Position o = position_of<I>(i, a.d.out, a.h.out, a.w.out, channels);
    const int64_t row = (o.plane * a.d.in + nearest_index(a.d, o.d)) * a.h.in + nearest_index(a.h, o.h);
    y[i] = x[(row * a.w.in + nearest_index(a.w, o.w)) * channels + o.c];
  }
}

template <typename Chunk>
void forward(const InterpolateParams& p, int64_t pixel_bytes, const void* x, void* y, void* stream) {
  const int64_t channels = pixel_bytes / static_cast<int64_t>(sizeof(Chunk));
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t work = planes * volume(p.out) * channels;
  if (work == 0) return;
  const bool small = work < (int64_t{1} << 32);
  launch("interpolate_nearest", small ? nearest_kernel<Chunk, uint32_t> : nearest_kernel<Chunk, uint64_t>,
         blocks_for(work), kThreads, 0, stream, axes(p), channels, work, static_cast<const Chunk*>(x),
         static_cast<Chunk*>(y));
}

int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 8;
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
      break;
  }
  return 1;
}

// ---- adjoint -----------------------------------------------------------------------------------

// One input element per thread: the sum of the outputs that copy it.
template <typename T, typename I>
__global__ void nearest_adjoint_kernel(Axes a, int64_t channels, int64_t work, const T* dy, T* dx) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Position at = position_of<I>(i, a.d.in, a.h.in, a.w.in, channels);
    const Range rd{nearest_first(a.d, at.d), nearest_first(a.d, at.d + 1)};
    const Range rh{nearest_first(a.h, at.h), nearest_first(a.h, at.h + 1)};
    const Range rw{nearest_first(a.w, at.w), nearest_first(a.w, at.w + 1)};
    Acc<T> sum = 0;
    for (int64_t d = rd.begin; d < rd.end; ++d)
      for (int64_t h = rh.begin; h < rh.end; ++h) {
        const T* row = dy + ((at.plane * a.d.out + d) * a.h.out + h) * a.w.out * channels + at.c;
        for (int64_t w = rw.begin; w < rw.end; ++w) sum += to_acc(row[w * channels]);
      }
    dx[i] = from_acc<T>(sum);
  }
}

}  // namespace

void interpolate_nearest(const InterpolateParams& p, const void* x, void* y, void* stream) {
  // channels_last copies a pixel in the widest chunks that divide it and suit the addresses; NCHW
  // copies elements.
  const int64_t bytes = element_bytes(p.dtype) * (p.channels_last ? p.c : 1);
  const uintptr_t fits =
      reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y) | static_cast<uintptr_t>(bytes);
  if (fits % 16 == 0) return forward<uint4>(p, bytes, x, y, stream);
  if (fits % 8 == 0) return forward<uint2>(p, bytes, x, y, stream);
  if (fits % 4 == 0) return forward<uint32_t>(p, bytes, x, y, stream);
  if (fits % 2 == 0) return forward<uint16_t>(p, bytes, x, y, stream);
  return forward<uint8_t>(p, bytes, x, y, stream);
}

void interpolate_nearest_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* stream) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t channels = p.channels_last ? p.c : 1, planes = p.channels_last ? p.n : p.n * p.c;
    const int64_t work = planes * volume(p.in) * channels;
    if (work == 0) return;
    const bool small = work < (int64_t{1} << 32);
    launch("interpolate_nearest_adjoint",
           small ? nearest_adjoint_kernel<T, uint32_t> : nearest_adjoint_kernel<T, uint64_t>,
           blocks_for(work), kThreads, 0, stream, axes(p), channels, work, static_cast<const T*>(dy),
           static_cast<T*>(dx));
  });
}

}  // namespace cuda
}  // namespace fastops
