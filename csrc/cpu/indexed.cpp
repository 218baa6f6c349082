// Max unpooling and its adjoint on the CPU.
//
// Planes (channels_last: blocks of channels of an image) are walked in raster order by one task each, so
// the last of several equal indices wins on any number of threads. Where there are fewer planes than
// threads, each task walks all of a plane and keeps to its own part of the output.
#include "../indexed.h"

#include <atomic>
#include <stdexcept>

#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// How the work is dealt out: images or planes, blocks of channels, parts of the output.
struct Walk {
  int64_t planes, stride;  // stride: interleaved channels
  int64_t channel_block, channel_blocks, part, parts;

  Walk(const UnpoolParams& p, int threads) {
    const bool interleaved = p.channels_last && p.c > 1;
    planes = interleaved ? p.n : p.n * p.c;
    stride = interleaved ? p.c : 1;
    // Blocks of whole cache lines, so that no two tasks write to one.
    const int64_t wanted = planes > 0 ? ceil_div(threads, planes) : 1;
    channel_block = imin(stride, ceil_div(ceil_div(stride, wanted), 64) * 64);
    channel_blocks = ceil_div(stride, channel_block);
    parts = planes > 0 ? imax(1, ceil_div(wanted, channel_blocks)) : 1;
    part = ceil_div(volume(p.out), parts);
    parts = ceil_div(volume(p.out), part);
  }
};

// y[index] = x over one plane's block of channels, for indices in [begin, end) of [0, size). Zeros are
// written just ahead of the values: while indices ascend, each line of y is touched once. Returns whether
// every index was in the plane.
template <typename T>
bool assign(const Walk& walk, int64_t channels, const T* x, const int64_t* indices, int64_t count, T* y,
            int64_t begin, int64_t end, int64_t size) {
  constexpr int64_t kAhead = 2048;  // elements
  const int64_t stride = walk.stride, ahead = imax(1, kAhead / channels);
  int64_t clean = begin;  // y is zeroed up to here
  const auto zero_up_to = [&](int64_t to) {
    to = imin(to, end);
    if (channels == stride)
      std::memset(y + clean * stride, 0, static_cast<size_t>((to - clean) * stride) * sizeof(T));
    else
      for (int64_t i = clean; i < to; ++i)
        std::memset(y + i * stride, 0, static_cast<size_t>(channels) * sizeof(T));
    clean = to;
  };
  bool good = true;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t to = indices[i * stride + c];
      if (__builtin_expect(to < begin || to >= end, 0)) {
        good = good && to >= 0 && to < size;
        continue;
      }
      if (__builtin_expect(to >= clean, 0)) zero_up_to(to + ahead);
      y[to * stride + c] = x[i * stride + c];
    }
  zero_up_to(end);
  return good;
}

// dx = dy[index] where the element is the last one with its index. Walks backwards, and marks in `seen`
// (one bit per output, zeroed here) which outputs are taken. Returns whether every index was inside.
template <typename T>
bool take_plane(const T* dy, const int64_t* indices, int64_t count, uint64_t* seen, T* dx, int64_t size) {
  std::memset(seen, 0, static_cast<size_t>((size + 63) / 64) * 8);
  bool inside = true;
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t from = indices[i];
    if (__builtin_expect(from < 0 || from >= size, 0)) {
      inside = false;
      continue;
    }
    const uint64_t bit = uint64_t{1} << (from & 63), word = seen[from >> 6];
    dx[i] = word & bit ? T{} : dy[from];
    seen[from >> 6] = word | bit;
  }
  return inside;
}
// The same for channels [0, channels) of a channels_last image; `seen` has a byte for 8 channels.
template <typename T>
bool take_pixels(const T* dy, const int64_t* indices, int64_t count, uint8_t* seen, T* dx, int64_t size,
                 int64_t stride, int64_t channels) {
  const int64_t bytes = (stride + 7) / 8;
  for (int64_t i = 0; i < size; ++i)
    std::memset(seen + i * bytes, 0, static_cast<size_t>((channels + 7) / 8));
  bool inside = true;
  for (int64_t i = count - 1; i >= 0; --i)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t from = indices[i * stride + c];
      if (__builtin_expect(from < 0 || from >= size, 0)) {
        inside = false;
        continue;
      }
      uint8_t& byte = seen[from * bytes + (c >> 3)];
      const uint8_t bit = static_cast<uint8_t>(1u << (c & 7));
      dx[i * stride + c] = byte & bit ? T{} : dy[from * stride + c];
      byte |= bit;
    }
  return inside;
}

}  // namespace

template <>
void max_unpool<kIsa>(const UnpoolParams& p, const void* x, const void* indices, void* y, int threads) {
  const int64_t in = volume(p.in), out = volume(p.out);
  const int64_t* where = static_cast<const int64_t*>(indices);
  if (p.n * p.c * in > 0 && out == 0) throw std::runtime_error(kInvalidIndex);
  if (out == 0) return;
  const Walk walk(p, threads);
  std::atomic<bool> inside{true};
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_for(threads, walk.planes * walk.channel_blocks * walk.parts, in + out, [&](int64_t task, int) {
      const int64_t part = task % walk.parts,
                    c = task / walk.parts % walk.channel_blocks * walk.channel_block;
      const int64_t plane = task / walk.parts / walk.channel_blocks;
      const int64_t from = plane * in * walk.stride + c;
      if (!assign(walk, imin(walk.channel_block, walk.stride - c), static_cast<const T*>(x) + from,
                  where + from, in, static_cast<T*>(y) + plane * out * walk.stride + c, part * walk.part,
                  imin((part + 1) * walk.part, out), out))
        inside.store(false);
    });
  });
  if (!inside.load()) throw std::runtime_error(kInvalidIndex);
}

template <>
void max_unpool_adjoint<kIsa>(const UnpoolParams& p, const void* dy, const void* indices, void* dx,
                              void* workspace, int threads) {
  const int64_t in = volume(p.in), out = volume(p.out);
  if (p.n * p.c * in > 0 && out == 0) throw std::runtime_error(kInvalidIndex);
  if (out == 0) return;
  const int64_t* where = static_cast<const int64_t*>(indices);
  const Walk walk(p, threads);
  std::atomic<bool> inside{true};
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_for(threads, walk.planes * walk.channel_blocks, in * 4, [&](int64_t task, int) {
      const int64_t c = task % walk.channel_blocks * walk.channel_block, plane = task / walk.channel_blocks;
      const T* from = static_cast<const T*>(dy) + plane * out * walk.stride + c;
      T* to = static_cast<T*>(dx) + plane * in * walk.stride + c;
      const int64_t* index = where + plane * in * walk.stride + c;
      const bool good =
          walk.stride == 1
              ? take_plane(from, index, in, static_cast<uint64_t*>(workspace) + plane * ((out + 63) / 64), to,
                           out)
              : take_pixels(from, index, in,
                            static_cast<uint8_t*>(workspace) + plane * out * ((walk.stride + 7) / 8) + c / 8,
                            to, out, walk.stride, imin(walk.channel_block, walk.stride - c));
      if (!good) inside.store(false);
    });
  });
  if (!inside.load()) throw std::runtime_error(kInvalidIndex);
}

}  // namespace cpu
}  // namespace fastops
