// Passes over (n, c, spatial) tensors whose coefficients and sums belong to channels, for both layouts.
// An op says what happens to one element; these say who has which elements, and in which order sums are
// made.
//
// Both layouts are seen as groups of channels with `items` packs each. A pack has `width` neighbouring
// elements. Contiguous ("planes"): a group is a channel, and a pack belongs to it alone; its items are
// runs, one in each image. channels_last ("rows"): a group is the `width` channels of a pack, and every
// row has one item of it. A block has `lanes` neighbouring groups, `slices` threads for each.
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
constexpr int kResidentThreads = 512;
// The shared memory of a block that keeps its slab: what is left to one block on every GPU since sm_80.
constexpr int64_t kResidentBytes = 99 << 10;
constexpr int64_t kSmallSlab = 16 << 10;  // bytes; less time than the launches of separate passes take

inline int64_t bytes_of(DType dtype) { return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2; }

// Packs have 16 bytes (or `most` bytes) where the shape allows: a multiple of them in each plane, or in
// one or a few rows. Addresses have no part in it, since the order of summation follows from the packs.
inline Slabs slabs_of(const BatchNormParams& p, int64_t most = 16) {
  Slabs s{};
  const int64_t bytes = bytes_of(p.dtype), most_width = most / bytes, m = p.n * volume(p.in);
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

// Splits, so that there are about `blocks` blocks, while each thread has at least 4 and at most `most`
// items. Sums of more would lose digits.
inline Slabs cut(Slabs s, int64_t bytes, int64_t blocks, int64_t most) {
  arrange(s, bytes, kThreads, kThreads);
  const int64_t tiles = ceil_div(s.groups, s.lanes);
  int64_t splits = imin(ceil_div(s.items, 4 * s.slices), ceil_div(blocks, tiles));
  splits = imax(imax(splits, ceil_div(s.items, most * s.slices)), 1);
  s.share = static_cast<int>(ceil_div(s.items, splits));
  complete(s);
  return s;
}
inline Slabs cut_to_reduce(const BatchNormParams& p, int64_t most_bytes = 16) {
  return cut(slabs_of(p, most_bytes), bytes_of(p.dtype), kWave, 256);
}
inline Slabs cut_to_map(const BatchNormParams& p, int64_t most_bytes = 16) {
  return cut(slabs_of(p, most_bytes), bytes_of(p.dtype), 4 * kWave, 32);
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

// The same where a block has all items of its groups.
template <bool rows>
__device__ inline Place place_of_all(const Slabs& s) {
  Place me = place<rows>(s);
  me.split = 0;
  me.group = int64_t{blockIdx.x} * s.lanes + me.lane;
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

// ---- sums over channels ----------------------------------------------------------------------------

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

// An op has
//   inputs, in[]          tensors that it reads; null: absent
//   batch                 packs of 16 bytes that a thread asks for at once
//   Item                  what is summed, for one channel: default is empty, a.merge(b) adds b to a
//   Coefficients          what it knows of a channel: coefficients(channel, first), where first is the
//                         offset of an element of it, the same for the whole block
//   accumulate(k, x, valid, seen, item)   adds x[input][0 .. valid)[…] of a channel to item, after `seen`
//                         elements
//   sums, partial(k, item, out)     leaves so many numbers, combined by a Finish (below)
// partials: (entries, splits, sums).
template <typename T, typename Op, int width, bool rows>
__global__ void __launch_bounds__(kThreads, 1) reduce_channels_kernel(Slabs s, Op op, double* partials) {
  using A = Acc<T>;
  using Item = typename Op::Item;
  constexpr int each = rows ? width : 1, per = width / each;  // channels of a thread, elements for each
  constexpr int batch = kBatch<Op, width, rows>;
  FASTOPS_SHARED(shared, Item[each * kThreads]);
  const Place me = place<rows>(s);
  Item mine[each];
  typename Op::Coefficients k[each];
  int seen = 0;
  if (me.group < s.groups) {
    const int64_t image = me.split * s.share / s.run, in_run = me.split * s.share - image * s.run;
    const int64_t first = (me.group * s.run + image * s.stride + in_run) * width;
    for_channels<rows, each>(s, me,
                             [&](int u, int64_t channel) { k[u] = op.coefficients(channel, first + u); });
    for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int, int valid) {
      Pack<T, width> v[Op::inputs][batch];
#pragma unroll
      for (int i = 0; i < Op::inputs; ++i) load(op.in[i], at, valid, s.aligned, v[i]);
#pragma unroll
      for (int u = 0; u < each; ++u) {
        A x[Op::inputs][batch][per];
#pragma unroll
        for (int i = 0; i < Op::inputs; ++i)
#pragma unroll
          for (int b = 0; b < batch; ++b)
#pragma unroll
            for (int e = 0; e < per; ++e) x[i][b][e] = to_acc(v[i][b].v[u + e]);
        op.accumulate(k[u], x, valid, seen, mine[u]);
      }
      seen += valid * per;
    });
  }
  combine(&shared[0], mine, s, me);
  if (me.slice == 0 && me.group < s.groups) {
#pragma unroll
    for (int u = 0; u < each; ++u)
      op.partial(k[u], mine[u], partials + ((me.group * each + u) * s.splits + me.split) * Op::sums);
  }
}

// All partial results of a channel, as a warp sees them.
template <int sums>
struct Parts {
  const double* partials;
  int64_t channel, channels, splits;  // splits 0: there are none
  int fold;

  // f(one partial result) for those of this lane.
  template <typename F>
  __device__ void for_each(F f) const {
    for (int i = 0; i < fold; ++i)
      for (int64_t j = threadIdx.x % 32; j < splits; j += 32)
        f(partials + ((channel + i * channels) * splits + j) * sums);
  }
  __device__ const double* any() const { return partials + channel * splits * sums; }
  __device__ static double over_warp(double v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
    return v;
  }
};

// finish(parts, channel) for every channel, by all lanes of a warp.
template <typename Finish>
__global__ void finish_channels_kernel(Finish finish, int64_t channels, int64_t splits, int fold,
                                       const double* partials) {
  const int64_t channel = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  if (channel < channels) finish(Parts<Finish::sums>{partials, channel, channels, splits, fold}, channel);
}

// ---- elementwise passes ----------------------------------------------------------------------------

// An op has inputs, in[], batch, Coefficients and coefficients(channel) as above; and
//   outputs, out[]        tensors that it writes; null: not wanted
//   map(k, x, y)          the outputs for one element of a channel
template <typename T, typename Op, int width, bool rows>
__global__ void __launch_bounds__(kThreads) map_channels_kernel(Slabs s, Op op) {
  using A = Acc<T>;
  constexpr int each = rows ? width : 1, batch = kBatch<Op, width, rows>;
  const Place me = place<rows>(s);
  if (me.group >= s.groups) return;
  typename Op::Coefficients k[each];
  for_channels<rows, each>(s, me, [&](int u, int64_t channel) { k[u] = op.coefficients(channel); });
  for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int, int valid) {
    Pack<T, width> v[Op::inputs][batch];
#pragma unroll
    for (int i = 0; i < Op::inputs; ++i) load(op.in[i], at, valid, s.aligned, v[i]);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      Pack<T, width> result[Op::outputs];
#pragma unroll
      for (int u = 0; u < width; ++u) {
        A x[Op::inputs];
        T y[Op::outputs];
#pragma unroll
        for (int i = 0; i < Op::inputs; ++i) x[i] = to_acc(v[i][b].v[u]);
        op.map(k[rows ? u : 0], x, y);
#pragma unroll
        for (int i = 0; i < Op::outputs; ++i) result[i].v[u] = y[i];
      }
      if (b < valid) {
#pragma unroll
        for (int i = 0; i < Op::outputs; ++i) store(op.out[i], at[b], s.aligned, result[i]);
      }
    }
  });
}

// ---- slabs that stay -------------------------------------------------------------------------------

// A block that has whole slabs of its groups keeps them in shared memory. A thread fetches and uses its
// own items only: [round][thread]; behind the tensors there is room for combine() and for coefficients.
struct ResidentPlan {
  Slabs s;
  int64_t tensor_bytes;  // of each tensor's slabs
  int64_t shared_bytes;  // 0: not possible, or not worth it
};

inline ResidentPlan resident_plan(const BatchNormParams& p, int64_t tensors, int64_t item_bytes,
                                  int64_t channel_bytes) {
  ResidentPlan r{slabs_of(p), 0, 0};
  Slabs& s = r.s;
  const int64_t bytes = bytes_of(p.dtype), all = s.items * s.width * bytes;  // of one group
  if (s.fold > 1 || all > kResidentBytes) return r;
  const auto fits = [&](int64_t lanes) {
    arrange(s, bytes, kResidentThreads, lanes);
    s.share = static_cast<int>(s.items);
    complete(s);
    const int64_t each = s.rows ? s.width : 1;
    r.tensor_bytes = round_up(ceil_div(s.items, s.slices) * s.threads() * s.width * bytes, 16);
    r.shared_bytes = tensors * r.tensor_bytes + each * (s.threads() * item_bytes + s.lanes * channel_bytes);
    return r.shared_bytes <= kResidentBytes;
  };
  for (int64_t lanes = 8; lanes > 0; lanes /= 2)
    if (fits(lanes) && s.tiles >= kProcessors) return r;
  if (!fits(1) || all > kSmallSlab) r.shared_bytes = 0;
  return r;
}

// Starts to copy this thread's items to its column of `slab`; wait_for_copies<0>() ends it.
template <bool rows, typename T, int width>
__device__ inline void fetch(const Slabs& s, const Place& me, const T* from, Pack<T, width>* slab) {
  constexpr int batch = width == 1 ? 8 : 4;
  for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int k, int valid) {
    Pack<T, width>* to = slab + k * blockDim.x + threadIdx.x;
    if (sizeof(T) * width == 16 && s.aligned) {
#pragma unroll
      for (int b = 0; b < batch; ++b)
        if (b < valid) copy_async_16(to + b * blockDim.x, from + at[b] * width, true);
      return;
    }
    Pack<T, width> v[batch];
    load(from, at, valid, s.aligned, v);
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) to[b * blockDim.x] = v[b];
  });
  commit_copies();
}

// ---- launching -------------------------------------------------------------------------------------

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
  if (blocks >= int64_t{1} << 31) throw std::invalid_argument("fastops: batch norm: the tensor is too large");
  return static_cast<unsigned>(blocks);
}

template <typename T, int most, typename Op>
void reduce_channels(const char* name, Slabs s, const Op& op, double* partials, void* stream) {
  s.aligned = packs_fit<T>(s, addresses_of(op.in));
  dispatch_slabs<T, most>(s, [&](auto width, auto rows) {
    launch(name, reduce_channels_kernel<T, Op, decltype(width)::value, decltype(rows)::value>,
           grid_of(s.blocks()), s.threads(), 0, stream, s, op, partials);
  });
}

// s.splits = 0: there are no partial results.
template <typename Finish>
void finish_channels(const char* name, const Slabs& s, const Finish& finish, const double* partials,
                     void* stream) {
  launch(name, finish_channels_kernel<Finish>, grid_of(ceil_div(s.channels, kThreads / 32)), kThreads, 0,
         stream, finish, s.channels, s.splits, s.fold, partials);
}

template <typename T, int most, typename Op>
void map_channels(const char* name, Slabs s, const Op& op, void* stream) {
  s.aligned = packs_fit<T>(s, addresses_of(op.in) | addresses_of(op.out));
  dispatch_slabs<T, most>(s, [&](auto width, auto rows) {
    launch(name, map_channels_kernel<T, Op, decltype(width)::value, decltype(rows)::value>,
           grid_of(s.blocks()), s.threads(), 0, stream, s, op);
  });
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
