// Max unpooling and its adjoint on the GPU.
//
// Of the elements with one index the last in raster order wins. Which one that is, an integer maximum
// finds, and those do not depend on the order of the threads. Then an output without a winner is zero
// and any other its winner's value, written once; in the adjoint an element reads its output if it won.
//
// Contiguous planes are cut into chunks of outputs, whose winners a block has in shared memory. It looks
// at those segments of the plane's indices that reach its chunk: where the indices come from pooling they
// are few, because a first kernel has noted the least and the largest index of each segment. Interleaved
// channels, and planes of very many chunks, have their winners in the workspace.
#include <limits>

#include "../indexed.h"
#include "primitives.cuh"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kChunk = 8192;        // outputs: 32 KiB of winners, so that a multiprocessor holds 7 blocks
constexpr int kSegment = 4 * 256;   // indices
constexpr int64_t kMaxChunks = 32;  // of a plane: indices in no order at all are read so many times

int64_t chunks_of(const UnpoolParams& p) { return ceil_div(volume(p.out), kChunk); }
int64_t segments_of(const UnpoolParams& p) { return ceil_div(volume(p.in), kSegment); }
bool interleaved(const UnpoolParams& p) { return p.channels_last && p.c > 1; }
bool winners_are_shared(const UnpoolParams& p) {
  return !interleaved(p) && chunks_of(p) <= kMaxChunks && volume(p.in) < int64_t{1} << 31;
}

// ---- winners in shared memory -------------------------------------------------------------------

// The least and the largest index of a segment; the former is larger where no index is valid.
struct Bounds {
  int32_t least, largest;
};

// Notes the bounds of each segment. An index outside of the plane is reported, if report is not null, and
// gets a zero in dx, if that is not null.
template <typename T>
__global__ void bounds_kernel(int64_t planes, int64_t in_plane, int64_t out_plane, int64_t segments,
                              const int64_t* indices, Bounds* bounds, T* dx, int32_t* report) {
  FASTOPS_SHARED(partial, Bounds[kThreads / 32]);
  for (int64_t item = blockIdx.x; item < planes * segments; item += gridDim.x) {
    const int64_t plane = item / segments, first = item % segments * kSegment;
    const int64_t last = first + kSegment < in_plane ? first + kSegment : in_plane;
    Bounds b = {std::numeric_limits<int32_t>::max(), -1};
    for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
      const int64_t index = indices[plane * in_plane + i];
      if (index >= 0 && index < out_plane) {
        b.least = min(b.least, static_cast<int32_t>(index));
        b.largest = max(b.largest, static_cast<int32_t>(index));
      } else {
        if (report != nullptr) atomicExch(report, 1);
        if (dx != nullptr) dx[plane * in_plane + i] = from_acc<T>(0);
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      b.least = min(b.least, __shfl_xor_sync(~0u, b.least, distance));
      b.largest = max(b.largest, __shfl_xor_sync(~0u, b.largest, distance));
    }
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = b;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kThreads / 32; ++warp) {
        b.least = min(b.least, partial[warp].least);
        b.largest = max(b.largest, partial[warp].largest);
      }
      bounds[item] = b;
    }
    __syncthreads();  // the next segment's bounds overwrite these
  }
}

// A block's chunk of a plane's outputs: [begin, end).
struct Chunk {
  int64_t plane;
  int32_t begin, end;
};
__device__ inline Chunk chunk_of(int64_t item, int64_t chunks, int64_t out_plane) {
  const int64_t plane = item / chunks, begin = item % chunks * kChunk;
  const int64_t end = begin + kChunk < out_plane ? begin + kChunk : out_plane;
  return {plane, static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

// f(i, index) for every element i of the plane whose index is in the chunk.
template <typename F>
__device__ void for_indices(const Chunk& chunk, int64_t in_plane, int64_t segments, const int64_t* indices,
                            const Bounds* bounds, F f) {
  for (int64_t s = 0; s < segments; ++s) {
    const Bounds b = bounds[chunk.plane * segments + s];
    if (b.largest < chunk.begin || b.least >= chunk.end) continue;
    const int64_t last = (s + 1) * kSegment < in_plane ? (s + 1) * kSegment : in_plane;
    for (int64_t i = s * kSegment + threadIdx.x; i < last; i += kThreads) {
      const int64_t index = indices[chunk.plane * in_plane + i];
      if (index >= chunk.begin && index < chunk.end) f(static_cast<int32_t>(i), static_cast<int32_t>(index));
    }
  }
}

// Finds the winners of a chunk, for the whole block: winners[index − begin], -1 where there is none.
__device__ inline void find_winners(const Chunk& chunk, int64_t in_plane, int64_t segments,
                                    const int64_t* indices, const Bounds* bounds, int32_t* winners) {
  for (int o = threadIdx.x; o < chunk.end - chunk.begin; o += kThreads) winners[o] = -1;
  __syncthreads();
  for_indices(chunk, in_plane, segments, indices, bounds,
              [&](int32_t i, int32_t index) { atomicMax(&winners[index - chunk.begin], i); });
  __syncthreads();
}

template <typename T, int width>
__global__ void unpool_chunks_kernel(int64_t planes, int64_t in_plane, int64_t out_plane, int64_t segments,
                                     int64_t chunks, const T* x, const int64_t* indices, const Bounds* bounds,
                                     Pack<T, width>* y) {
  FASTOPS_SHARED(winners, int32_t[kChunk]);
  for (int64_t item = blockIdx.x; item < planes * chunks; item += gridDim.x) {
    const Chunk chunk = chunk_of(item, chunks, out_plane);
    find_winners(chunk, in_plane, segments, indices, bounds, winners);
    const T* from = x + chunk.plane * in_plane;
    for (int o = threadIdx.x * width; o < chunk.end - chunk.begin; o += kThreads * width) {
      Pack<T, width> result;
#pragma unroll
      for (int u = 0; u < width; ++u) {
        const int32_t winner = winners[o + u];
        result.v[u] = winner < 0 ? from_acc<T>(0) : from[winner];
      }
      y[(chunk.plane * out_plane + chunk.begin + o) / width] = result;
    }
    __syncthreads();  // the next chunk's winners overwrite these
  }
}

template <typename T>
__global__ void unpool_adjoint_chunks_kernel(int64_t planes, int64_t in_plane, int64_t out_plane,
                                             int64_t segments, int64_t chunks, const T* dy,
                                             const int64_t* indices, const Bounds* bounds, T* dx) {
  FASTOPS_SHARED(winners, int32_t[kChunk]);
  for (int64_t item = blockIdx.x; item < planes * chunks; item += gridDim.x) {
    const Chunk chunk = chunk_of(item, chunks, out_plane);
    find_winners(chunk, in_plane, segments, indices, bounds, winners);
    const T* from = dy + chunk.plane * out_plane;
    T* to = dx + chunk.plane * in_plane;
    for_indices(chunk, in_plane, segments, indices, bounds, [&](int32_t i, int32_t index) {
      to[i] = winners[index - chunk.begin] == i ? from[index] : from_acc<T>(0);
    });
    __syncthreads();
  }
}

// ---- winners in the workspace --------------------------------------------------------------------

// Elements of a tensor (planes, plane, channels). I counts its elements.
template <typename I>
struct Planes {
  I in_plane, out_plane, channels;
  Divider<I> by_in_plane, by_out_plane, by_channels;
  explicit Planes(const UnpoolParams& p)
      : in_plane(volume(p.in)),
        out_plane(volume(p.out)),
        channels(interleaved(p) ? p.c : 1),
        by_in_plane(volume(p.in)),
        by_out_plane(volume(p.out)),
        by_channels(interleaved(p) ? p.c : 1) {}
};
template <typename I>
struct Element {
  I plane, pixel, channel;
};
template <typename I>
__device__ inline Element<I> element_of(I e, const Planes<I>& planes, I pixels, const Divider<I>& by_pixels) {
  const I pixel = planes.by_channels(e), plane = by_pixels(pixel);
  return {plane, pixel - plane * pixels, e - pixel * planes.channels};
}

__device__ inline void raise_to(int32_t* winner, int32_t pixel) { atomicMax(winner, pixel); }
__device__ inline void raise_to(int64_t* winner, int64_t pixel) {
  atomicMax(reinterpret_cast<long long*>(winner), static_cast<long long>(pixel));
}

template <typename I>
__global__ void claim_kernel(Planes<I> planes, int64_t work, const int64_t* indices, I* winners,
                             int32_t* report) {
  for (int64_t e = first_item(); e < work; e += item_stride()) {
    const Element<I> at = element_of(static_cast<I>(e), planes, planes.in_plane, planes.by_in_plane);
    const int64_t index = indices[e];
    if (index >= 0 && index < planes.out_plane)
      raise_to(winners + (at.plane * planes.out_plane + static_cast<I>(index)) * planes.channels + at.channel,
               at.pixel);
    else if (report != nullptr)
      atomicExch(report, 1);
  }
}

// A pack's elements are of one plane: pixels of it, or channels of a pixel.
template <typename T, int width, typename I>
__global__ void unpool_kernel(Planes<I> planes, int64_t work, const T* x, const Pack<I, width>* winners,
                              Pack<T, width>* y) {
  for (int64_t i = first_item(); i < work; i += item_stride()) {
    const Element<I> at =
        element_of(static_cast<I>(i) * width, planes, planes.out_plane, planes.by_out_plane);
    const Pack<I, width> winner = winners[i];
    Pack<T, width> result;
#pragma unroll
    for (int u = 0; u < width; ++u) {
      const I channel = planes.channels > 1 ? at.channel + u : 0;
      const I from = (at.plane * planes.in_plane + winner.v[u]) * planes.channels + channel;
      result.v[u] = winner.v[u] < 0 ? from_acc<T>(0) : x[from];
    }
    y[i] = result;
  }
}

template <typename T, typename I>
__global__ void unpool_adjoint_kernel(Planes<I> planes, int64_t work, const T* dy, const int64_t* indices,
                                      const I* winners, T* dx) {
  for (int64_t e = first_item(); e < work; e += item_stride()) {
    const Element<I> at = element_of(static_cast<I>(e), planes, planes.in_plane, planes.by_in_plane);
    const int64_t index = indices[e];
    T result = from_acc<T>(0);
    if (index >= 0 && index < planes.out_plane) {
      const I o = (at.plane * planes.out_plane + static_cast<I>(index)) * planes.channels + at.channel;
      if (winners[o] == at.pixel) result = dy[o];
    }
    dx[e] = result;
  }
}

int64_t inputs(const UnpoolParams& p) { return p.n * p.c * volume(p.in); }
int64_t outputs(const UnpoolParams& p) { return p.n * p.c * volume(p.out); }
bool fits_32_bits(const UnpoolParams& p) {
  return inputs(p) < int64_t{1} << 31 && outputs(p) < int64_t{1} << 31;
}

// f(planes), with the winners claimed.
template <typename F>
void with_winners(const char* name, const UnpoolParams& p, const void* indices, void* workspace,
                  int32_t* report, void* stream, F f) {
  const auto with_index = [&](auto planes) {
    using I = decltype(planes.channels);
    fill_bytes(name, workspace, 0xFF, max_unpool_workspace(p), stream);  // all of them -1
    launch(name, claim_kernel<I>, blocks_for(inputs(p)), kThreads, 0, stream, planes, inputs(p),
           static_cast<const int64_t*>(indices), static_cast<I*>(workspace), report);
    f(planes);
  };
  if (fits_32_bits(p))
    with_index(Planes<int32_t>(p));
  else
    with_index(Planes<int64_t>(p));
}

unsigned grid_of(int64_t items) { return static_cast<unsigned>(imin(items, int64_t{1} << 20)); }

// The bounds of every segment.
template <typename T>
void note_bounds(const char* name, const UnpoolParams& p, const void* indices, void* workspace, void* dx,
                 int32_t* report, void* stream) {
  const int64_t planes = p.n * p.c, segments = segments_of(p);
  if (inputs(p) == 0) return;
  launch(name, bounds_kernel<T>, grid_of(planes * segments), kThreads, 0, stream, planes, volume(p.in),
         volume(p.out), segments, static_cast<const int64_t*>(indices), static_cast<Bounds*>(workspace),
         static_cast<T*>(dx), report);
}

}  // namespace

int64_t max_unpool_workspace(const UnpoolParams& p) {
  if (winners_are_shared(p)) return p.n * p.c * segments_of(p) * static_cast<int64_t>(sizeof(Bounds));
  return outputs(p) * (fits_32_bits(p) ? 4 : 8);
}

void max_unpool(const UnpoolParams& p, const void* x, const void* indices, void* y, void* workspace,
                int32_t* report, void* stream) {
  if (outputs(p) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int width = 16 / sizeof(T);
    const int64_t run = interleaved(p) ? p.c : volume(p.out);
    const bool vectors = vectors_fit(run, sizeof(T), address(y));
    if (winners_are_shared(p)) {
      const int64_t planes = p.n * p.c, segments = segments_of(p), chunks = chunks_of(p);
      note_bounds<T>("max_unpool", p, indices, workspace, nullptr, report, stream);
      const auto write = [&](auto constant) {
        constexpr int w = decltype(constant)::value;
        launch("max_unpool", unpool_chunks_kernel<T, w>, grid_of(planes * chunks), kThreads, 0, stream,
               planes, volume(p.in), volume(p.out), segments, chunks, static_cast<const T*>(x),
               static_cast<const int64_t*>(indices), static_cast<const Bounds*>(workspace),
               static_cast<Pack<T, w>*>(y));
      };
      vectors ? write(Width<width>{}) : write(Width<1>{});
      return;
    }
    with_winners("max_unpool", p, indices, workspace, report, stream, [&](auto planes) {
      using I = decltype(planes.channels);
      const auto write = [&](auto constant) {
        constexpr int w = decltype(constant)::value;
        launch("max_unpool", unpool_kernel<T, w, I>, blocks_for(outputs(p) / w), kThreads, 0, stream, planes,
               outputs(p) / w, static_cast<const T*>(x), static_cast<const Pack<I, w>*>(workspace),
               static_cast<Pack<T, w>*>(y));
      };
      vectors ? write(Width<width>{}) : write(Width<1>{});
    });
  });
}

void max_unpool_adjoint(const UnpoolParams& p, const void* dy, const void* indices, void* dx, void* workspace,
                        void* stream) {
  if (inputs(p) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (winners_are_shared(p)) {
      const int64_t planes = p.n * p.c, segments = segments_of(p), chunks = chunks_of(p);
      note_bounds<T>("max_unpool_adjoint", p, indices, workspace, dx, nullptr, stream);
      if (chunks == 0) return;
      launch("max_unpool_adjoint", unpool_adjoint_chunks_kernel<T>, grid_of(planes * chunks), kThreads, 0,
             stream, planes, volume(p.in), volume(p.out), segments, chunks, static_cast<const T*>(dy),
             static_cast<const int64_t*>(indices), static_cast<const Bounds*>(workspace),
             static_cast<T*>(dx));
      return;
    }
    with_winners("max_unpool_adjoint", p, indices, workspace, nullptr, stream, [&](auto planes) {
      using I = decltype(planes.channels);
      launch("max_unpool_adjoint", unpool_adjoint_kernel<T, I>, blocks_for(inputs(p)), kThreads, 0, stream,
             planes, inputs(p), static_cast<const T*>(dy), static_cast<const int64_t*>(indices),
             static_cast<const I*>(workspace), static_cast<T*>(dx));
    });
  });
}

}  // namespace cuda
}  // namespace fastops
