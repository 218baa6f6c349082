// Nearest interpolation and its adjoint on the GPU: gathers, so no atomics and the same bits each run.
//
// A thread has 16 bytes of the result where addresses and sizes allow: channels of a pixel in
// channels_last, neighbours in a row of a contiguous plane; else one element. The adjoint finds the
// outputs that copy an input in a table, made once per call: each entry costs fp64 divisions.
#include "../interpolate.h"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// What kernels need of the params.
struct Axes {
  SampleAxis d, h, w;
};
Axes axes(const InterpolateParams& p) { return {axis_d(p), axis_h(p), axis_w(p)}; }

// Places in a dense tensor (planes, extent, groups), from an index that counts them all.
template <typename I>
struct Grid {
  I depth, height, width, groups;
  Divider<I> by_depth, by_height, by_width, by_groups;

  Grid(const Extent& e, int64_t row_groups, int64_t channel_groups)
      : depth(e.d),
        height(e.h),
        width(row_groups),
        groups(channel_groups),
        by_depth(e.d),
        by_height(e.h),
        by_width(row_groups),
        by_groups(channel_groups) {}
  __device__ Place<I> operator()(I index) const {
    const I pixel = by_groups(index), row = by_width(pixel), slice = by_height(row), plane = by_depth(slice);
    return {plane, slice - plane * depth, row - slice * height, pixel - row * width, index - pixel * groups};
  }
};

// ---- forward -----------------------------------------------------------------------------------

// A pixel is `grid.groups` chunks of up to 16 bytes.
template <typename Chunk, typename I>
__global__ void nearest_kernel(Axes a, Grid<I> grid, int64_t work, const Chunk* x, Chunk* y) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> o = grid(static_cast<I>(i));
    const int64_t row = (o.plane * a.d.in + nearest_index(a.d, o.d)) * a.h.in + nearest_index(a.h, o.h);
    y[i] = x[(row * a.w.in + nearest_index(a.w, o.w)) * grid.groups + o.group];
  }
}

// A thread has `run` outputs of a row of a contiguous plane.
template <typename T, int run, typename I>
__global__ void nearest_rows_kernel(Axes a, Grid<I> grid, int64_t work, const T* x, Pack<T, run>* y) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> o = grid(static_cast<I>(i));
    const int64_t row = (o.plane * a.d.in + nearest_index(a.d, o.d)) * a.h.in + nearest_index(a.h, o.h);
    const T* from = x + row * a.w.in;
    Pack<T, run> result;
#pragma unroll
    for (int u = 0; u < run; ++u) result.v[u] = from[nearest_index(a.w, int64_t{o.w} * run + u)];
    y[i] = result;
  }
}

// f(Type<I>{}) with the index type for so many items.
template <typename F>
void dispatch_index(int64_t items, F f) {
  if (items < int64_t{1} << 31)
    f(Type<int32_t>{});
  else
    f(Type<int64_t>{});
}

int64_t planes_of(const InterpolateParams& p) { return p.channels_last ? p.n : p.n * p.c; }

template <typename Chunk>
void forward(const InterpolateParams& p, const void* x, void* y, void* stream) {
  constexpr int64_t size = sizeof(Chunk), run = 16 / size;
  const int64_t pixel = element_bytes(p.dtype) * (p.channels_last ? p.c : 1);
  const bool runs = pixel == size && vectors_fit(p.out.w, size, address(y));
  const int64_t work = planes_of(p) * volume(p.out) * (pixel / size) / (runs ? run : 1);
  if (work == 0) return;
  dispatch_index(work, [&](auto index) {
    using I = typename decltype(index)::type;
    const Grid<I> grid(p.out, runs ? p.out.w / run : p.out.w, pixel / size);
    if constexpr (run > 1)
      if (runs)
        return launch("interpolate_nearest", nearest_rows_kernel<Chunk, run, I>, blocks_for(work), kThreads,
                      0, stream, axes(p), grid, work, static_cast<const Chunk*>(x),
                      static_cast<Pack<Chunk, run>*>(y));
    launch("interpolate_nearest", nearest_kernel<Chunk, I>, blocks_for(work), kThreads, 0, stream, axes(p),
           grid, work, static_cast<const Chunk*>(x), static_cast<Chunk*>(y));
  });
}

// ---- adjoint -----------------------------------------------------------------------------------

// For each axis, in + 1 entries: the first output that copies input i or a later one.
template <typename I>
struct Firsts {
  I *d, *h, *w;
};

int64_t entries(const InterpolateParams& p) { return p.in.d + p.in.h + p.in.w + 3; }

template <typename I>
__global__ void firsts_kernel(Axes a, int64_t work, I* firsts) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const int64_t h = i - (a.d.in + 1), w = h - (a.h.in + 1);
    firsts[i] = static_cast<I>(h < 0   ? nearest_first(a.d, i)
                               : w < 0 ? nearest_first(a.h, h)
                                       : nearest_first(a.w, w));
  }
}

// An input's sum, of `width` channels of a pixel and `run` neighbours in a row; one of them is 1.
template <typename T, int width, int run, typename I>
__global__ void nearest_adjoint_kernel(Axes a, Grid<I> grid, Firsts<I> firsts, int64_t work,
                                       const Pack<T, width>* dy, Pack<T, width * run>* dx) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Place<I> at = grid(static_cast<I>(i));
    Acc<T> sum[width * run] = {};
    for (int64_t d = firsts.d[at.d]; d < firsts.d[at.d + 1]; ++d)
      for (int64_t h = firsts.h[at.h]; h < firsts.h[at.h + 1]; ++h) {
        const int64_t row = ((at.plane * a.d.out + d) * a.h.out + h) * a.w.out;
#pragma unroll
        for (int u = 0; u < run; ++u)
          for (I w = firsts.w[at.w * run + u]; w < firsts.w[at.w * run + u + 1]; ++w) {
            const Pack<T, width> v = dy[(row + w) * grid.groups + at.group];
#pragma unroll
            for (int c = 0; c < width; ++c) sum[u * width + c] += to_acc(v.v[c]);
          }
      }
    Pack<T, width * run> result;
#pragma unroll
    for (int u = 0; u < width * run; ++u) result.v[u] = from_acc<T>(sum[u]);
    dx[i] = result;
  }
}

template <typename T, int width, int run>
void adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace, void* stream) {
  const int64_t groups = (p.channels_last ? p.c : 1) / width;
  const int64_t work = planes_of(p) * volume(p.in) * groups / run;
  dispatch_index(imax(work, imax(volume(p.in), volume(p.out))), [&](auto index) {
    using I = typename decltype(index)::type;
    I* const d = static_cast<I*>(workspace);
    const Firsts<I> firsts = {d, d + p.in.d + 1, d + p.in.d + p.in.h + 2};
    launch("interpolate_nearest_adjoint", firsts_kernel<I>, blocks_for(entries(p)), kThreads, 0, stream,
           axes(p), entries(p), d);
    launch("interpolate_nearest_adjoint", nearest_adjoint_kernel<T, width, run, I>, blocks_for(work),
           kThreads, 0, stream, axes(p), Grid<I>(p.in, p.in.w / run, groups), firsts, work,
           static_cast<const Pack<T, width>*>(dy), static_cast<Pack<T, width * run>*>(dx));
  });
}

}  // namespace

void interpolate_nearest(const InterpolateParams& p, const void* x, void* y, void* stream) {
  // channels_last copies a pixel in the widest chunks that divide it and suit the addresses; NCHW
  // copies elements.
  const int64_t bytes = element_bytes(p.dtype) * (p.channels_last ? p.c : 1);
  const uintptr_t fits = address(x) | address(y) | static_cast<uintptr_t>(bytes);
  if (fits % 16 == 0) return forward<uint4>(p, x, y, stream);
  if (fits % 8 == 0) return forward<uint2>(p, x, y, stream);
  if (fits % 4 == 0) return forward<uint32_t>(p, x, y, stream);
  if (fits % 2 == 0) return forward<uint16_t>(p, x, y, stream);
  return forward<uint8_t>(p, x, y, stream);
}

int64_t interpolate_nearest_adjoint_workspace(const InterpolateParams& p) { return 8 * entries(p); }

void interpolate_nearest_adjoint(const InterpolateParams& p, const void* dy, void* dx, void* workspace,
                                 void* stream) {
  if (p.n * p.c * volume(p.in) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int width = 16 / sizeof(T);
    if (p.channels_last && vectors_fit(p.c, sizeof(T), address(dy) | address(dx)))
      adjoint<T, width, 1>(p, dy, dx, workspace, stream);
    else if ((!p.channels_last || p.c == 1) && vectors_fit(p.in.w, sizeof(T), address(dx)))
      adjoint<T, 1, width>(p, dy, dx, workspace, stream);
    else
      adjoint<T, 1, 1>(p, dy, dx, workspace, stream);
  });
}

}  // namespace cuda
}  // namespace fastops
