// How a tensor (n, c, spatial) is cut, where coefficients and sums belong to channels: who has which
// elements, for both layouts.
//
// Both are seen as groups of channels with `items` packs each. A pack has `width` neighbouring elements.
// Contiguous ("planes"): a group is a channel, and a pack belongs to it alone; its items are runs, one in
// each image. channels_last ("rows"): a group is the `width` channels of a pack, and every row has one item
// of it. A block has `lanes` neighbouring groups, `slices` threads for each.
#pragma once

#include "../batch_norm.h"
#include "dispatch.h"
#include "launch.h"
#include "packs.h"
#include "primitives.cuh"

namespace fastops {
namespace cuda {
namespace {

// ---- how a tensor is cut ---------------------------------------------------------------------------

struct Slabs {
  int64_t channels;
  int64_t groups;
  int64_t items;    // of each group
  int64_t run;      // item j of group g is the pack g · run + (j / run) · stride + j mod run
  int64_t stride;   // (rows: run = 1)
  int width;        // elements of a pack
  int fold;         // rows: so many short rows are seen as one, in which channel = entry mod channels
  bool rows;        // else planes
  bool aligned;     // whether packs are, in every tensor
  int lanes;        // groups of a block
  int slices;       // threads of each group, which take turns at the items
  int64_t tiles;    // blocks side by side that have all groups
  int64_t splits;   // blocks that share out the items of a tile
  int share;        // items of such a block; the last may have fewer
  int64_t step;     // from one item of a thread to its next: packs,
  int step_in_run;  // and places in the run; where the run ends, so many packs more:
  int64_t wrap;
  int run_end;  // run, or something larger than all items of a block

  int threads() const { return lanes * slices; }
  int64_t blocks() const { return tiles * splits; }
  int64_t entries() const { return groups * (rows ? width : 1); }  // channels · fold
};

// A GPU of today; smaller ones are filled as well.
constexpr int64_t kProcessors = 132;
constexpr int64_t kWave = 4 * kProcessors;  // blocks of kThreads that are resident at 64 registers

// Packs have 16 bytes (or `most` bytes) where the shape allows: a multiple of them in each plane, or in
// one or a few rows. Addresses have no part in it, since the order of summation follows from the packs.
inline Slabs slabs_of(const BatchNormParams& p, int64_t most = 16) {
  Slabs s{};
  const int64_t bytes = element_bytes(p.dtype), most_width = most / bytes, m = p.n * volume(p.in);
  s.channels = p.c;
  s.rows = p.channels_last && p.c > 1;
  s.fold = 1;
  if (s.rows) {
    int64_t fold = 1;
    while (p.c * fold % most_width != 0) fold *= 2;
    const bool whole = m % fold == 0;
    s.fold = static_cast<int>(whole ? fold : 1);
    s.width = static_cast<int>(whole ? most_width : 1);
    s.groups = s.stride = p.c * s.fold / s.width;
    s.items = m / s.fold;
    s.run = 1;
  } else {
    const int64_t plane = p.c == 1 ? m : volume(p.in);  // one channel: no gaps between planes
    int64_t width = most_width;
    while (plane % width != 0) width /= width > 4 ? 2 : width;  // 8, 4 or 1 elements; 4, 2 of wider types
    s.width = static_cast<int>(width);
    s.run = imax(plane / width, 1);
    s.items = m / width;
    s.groups = p.c;
    s.stride = p.c * s.run;
  }
  return s;
}

// What follows from lanes, slices and share.
inline void complete(Slabs& s) {
  s.tiles = ceil_div(s.groups, s.lanes);
  s.splits = ceil_div(s.items, imax(s.share, 1));
  s.step = s.slices / s.run * s.stride + s.slices % s.run;
  s.step_in_run = static_cast<int>(s.slices % s.run);
  s.wrap = s.stride - s.run;
  s.run_end = static_cast<int>(imin(s.run, int64_t{1} << 30));
}

// Lanes and slices of blocks of at most `threads`. Rows: 512 bytes side by side, or more where there are
// few rows. Planes: 8 items for each thread, rather than all threads for one channel.
inline void arrange(Slabs& s, int64_t bytes, int64_t threads, int64_t most_lanes) {
  if (s.rows) {
    const int64_t wide = imax(512 / (s.width * bytes), threads / imax(s.items, 1));
    const int64_t most = imin(imin(imax(wide, 1), threads), most_lanes);
    s.lanes = static_cast<int>(ceil_div(s.groups, ceil_div(s.groups, most)));
    s.slices = static_cast<int>(imax(imin(threads / s.lanes, s.items), 1));
  } else {
    s.slices = 8;
    while (s.slices < threads && s.slices * 8 < s.items) s.slices *= 2;
    s.lanes = static_cast<int>(imin(imin(threads / s.slices, s.groups), most_lanes));
  }
}

// Splits, so that there are up to `blocks` blocks, while each thread has at least `least` and at most `most`
// items.
inline Slabs cut(Slabs s, int64_t bytes, int64_t blocks, int64_t least, int64_t most) {
  arrange(s, bytes, kThreads, kThreads);
  const int64_t tiles = ceil_div(s.groups, s.lanes);
  int64_t splits = imin(ceil_div(s.items, least * s.slices), blocks / tiles);
  splits = imax(imax(splits, ceil_div(s.items, most * s.slices)), 1);
  s.share = static_cast<int>(ceil_div(s.items, splits));
  complete(s);
  return s;
}
// One wave of blocks, or more where the sums of a thread would have so many terms that they lose digits.
// 64 channels of 256 × 112² in bf16, contiguous: 64 tiles with ⌊528 / 64⌋ = 8 splits each; of a channel's
// 401,408 items 50,176 fall to a block, 196 to a thread.
inline Slabs cut_to_reduce(const BatchNormParams& p, int64_t most_bytes = 16) {
  return cut(slabs_of(p, most_bytes), element_bytes(p.dtype), kWave, 4, 256);
}
// Several waves, since nothing is left over by a block; its threads fetch their coefficients once.
inline Slabs cut_to_map(const BatchNormParams& p, int64_t most_bytes = 16) {
  return cut(slabs_of(p, most_bytes), element_bytes(p.dtype), 4 * kWave, 2, 32);
}

// ---- a thread's items ------------------------------------------------------------------------------

struct Place {
  int lane, slice;
  int apart;  // threads between neighbouring slices of a lane
  int first;  // the thread that has slice 0
  int64_t group, split;
};

template <bool rows>
__device__ inline Place place(const Slabs& s) {
  const int t = threadIdx.x;
  Place me;
  me.lane = rows ? t % s.lanes : t / s.slices;
  me.slice = rows ? t / s.lanes : t % s.slices;
  me.apart = rows ? s.lanes : 1;
  me.first = t - me.slice * me.apart;
  const unsigned tiles = static_cast<unsigned>(s.tiles), split = blockIdx.x / tiles;  // below 2³¹: grid_of()
  me.split = split;
  me.group = int64_t{blockIdx.x - split * tiles} * s.lanes + me.lane;
  return me;
}

// f(u, channel) for the channels of a group's packs: in rows, channel of element u.
template <bool rows, int each, typename F>
__device__ inline void for_channels(const Slabs& s, const Place& me, F f) {
  int64_t channel = rows ? me.group * each : me.group;
  if (s.fold > 1) channel %= s.channels;
#pragma unroll
  for (int u = 0; u < each; ++u) {
    f(u, channel);
    if (++channel == s.channels) channel = 0;
  }
}

// f(at, k, valid) for every `batch` items of this thread in its block's share: at[0 .. valid) are packs,
// the thread's k-th, k + 1-th, … ones. at[valid ..) mean nothing.
template <bool rows, int batch, typename F>
__device__ inline void for_items(const Slabs& s, const Place& me, F f) {
  const int64_t begin = me.split * s.share, first = begin + me.slice;
  const int count = static_cast<int>(s.items - begin < s.share ? s.items - begin : s.share);
  int64_t offset = me.group + first * s.stride;
  int left = 1;  // places until the run ends
  if (!rows) {
    const int64_t image = first / s.run, in_run = first - image * s.run;
    offset = me.group * s.run + image * s.stride + in_run;
    left = static_cast<int>(s.run - in_run < s.run_end ? s.run - in_run : s.run_end);
  }
  for (int j = me.slice, k = 0; j < count; j += batch * s.slices, k += batch) {
    int64_t at[batch];
    int valid = 0;
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      at[b] = offset;
      valid += j + b * s.slices < count;
      offset += s.step;
      if (!rows) {
        left -= s.step_in_run;
        if (left <= 0) left += s.run_end, offset += s.wrap;
      }
    }
    f(at, k, valid);
  }
}

// ---- a thread's loads and stores -------------------------------------------------------------------

// The packs of a batch; −0 from a tensor that is not there, and where there is no item: that is the zero
// which changes nothing that it is added to.
template <typename T, int width, int batch>
__device__ inline void load(const T* from, const int64_t (&at)[batch], int valid, bool aligned,
                            Pack<T, width> (&to)[batch]) {
#pragma unroll
  for (int b = 0; b < batch; ++b)
#pragma unroll
    for (int u = 0; u < width; ++u) to[b].v[u] = from_acc<T>(-0.0f);
  if (from == nullptr) return;
  if (width == 1 || aligned) {
    const auto* packs = reinterpret_cast<const Pack<T, width>*>(from);
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) to[b] = packs[at[b]];
  } else {
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) {
#pragma unroll
        for (int u = 0; u < width; ++u) to[b].v[u] = from[at[b] * width + u];
      }
  }
}

template <typename T, int width>
__device__ inline void store(T* to, int64_t at, bool aligned, const Pack<T, width>& v) {
  if (to == nullptr) return;
  if (width == 1 || aligned) {
    reinterpret_cast<Pack<T, width>*>(to)[at] = v;
  } else {
#pragma unroll
    for (int u = 0; u < width; ++u) to[at * width + u] = v.v[u];
  }
}

// How many packs a thread asks for at once: fewer where it keeps coefficients of 8 channels in registers.
template <typename Op, int width, bool rows>
constexpr int kBatch = width == 1          ? 2 * Op::batch
                       : rows && width > 4 ? (Op::batch + 1) / 2
                                           : Op::batch;

// ---- what the threads of a block have in common -------------------------------------------------------

// Merges what the slices of each lane bring, always in the same order: into mine[] of slice 0, and
// shared[u · threads + me.first] behind the next barrier. shared has each · threads items.
template <int each, typename Item>
__device__ inline void combine(Item* shared, Item (&mine)[each], const Slabs& s, const Place& me) {
  const int t = threadIdx.x, threads = blockDim.x;
#pragma unroll
  for (int u = 0; u < each; ++u) shared[u * threads + t] = mine[u];
  for (int n = s.slices; n > 1;) {
    const int half = (n + 1) / 2;
    __syncthreads();
    if (me.slice + half < n) {
#pragma unroll
      for (int u = 0; u < each; ++u) {
        mine[u].merge(shared[u * threads + t + half * me.apart]);
        shared[u * threads + t] = mine[u];
      }
    }
    n = half;
  }
}

// ---- on the host -----------------------------------------------------------------------------------

// Calls f(width, rows), compile-time constants.
template <typename T, int most, typename F>
void dispatch_slabs(const Slabs& s, F f) {
  constexpr int width = most / sizeof(T);
  if (s.rows) {
    if (s.width == width)
      f(std::integral_constant<int, width>{}, std::true_type{});
    else
      f(std::integral_constant<int, 1>{}, std::true_type{});
  } else if (s.width == width) {
    f(std::integral_constant<int, width>{}, std::false_type{});
  } else if (width == 8 && s.width == 4) {
    f(std::integral_constant<int, width == 8 ? 4 : 1>{}, std::false_type{});
  } else {
    f(std::integral_constant<int, 1>{}, std::false_type{});
  }
}

// Whether all of the (combined) addresses are multiples of a pack.
template <typename T>
bool packs_fit(const Slabs& s, uintptr_t addresses) {
  return addresses % (s.width * sizeof(T)) == 0;
}
template <typename T, int count>
uintptr_t addresses_of(T* const (&tensors)[count]) {
  uintptr_t all = 0;
  for (T* t : tensors) all |= address(t);
  return all;
}

inline unsigned grid_of(int64_t blocks) {
  if (blocks >= int64_t{1} << 31) throw std::invalid_argument("fastops: the tensor is too large");
  return static_cast<unsigned>(blocks);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
