// Passes over tensors whose coefficients and sums belong to channels. An op says what happens to one
// element; slabs.h says who has which elements, and this file in which order sums are made.
#pragma once

#include "slabs.h"

namespace fastops {
namespace cuda {
namespace {

// ---- sums over channels ----------------------------------------------------------------------------

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
  typename Op::Coefficients k[each] = {};
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

// `count` sums.
template <typename A, int count>
struct Sums {
  A v[count] = {};
  __device__ void merge(const Sums& o) {
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] += o.v[i];
  }
};

// Adds what op.add(k, x, v) adds to v for each element; first those of a batch to each other, so that no
// sum has very many terms.
template <typename Op, typename A, int count, int inputs, int items, int per>
__device__ inline void accumulate_terms(const Op& op, const typename Op::Coefficients& k,
                                        const A (&x)[inputs][items][per], int valid, Sums<A, count>& all) {
  Sums<A, count> some;
#pragma unroll
  for (int b = 0; b < items; ++b)
    if (b < valid) {
#pragma unroll
      for (int e = 0; e < per; ++e) {
        A element[inputs];
#pragma unroll
        for (int i = 0; i < inputs; ++i) element[i] = x[i][b][e];
        op.add(k, element, some.v);
      }
    }
  all.merge(some);
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

// ---- launching -------------------------------------------------------------------------------------

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
