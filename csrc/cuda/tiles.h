// Products of tiles on the ordinary cores: Σ over d of m[d][·] · n[d][·] in registers, from tiles in shared
// memory. What the direct convolution kernels share; what is in the tiles is theirs.
#pragma once

#include "conv_axes.h"
#include "dispatch.h"
#include "launch.h"
#include "packs.h"
#include "primitives.cuh"

namespace fastops {
namespace cuda {
namespace {

// A block computes m × n sums, each of its threads each_m × each_n of them.
template <int m_, int n_, int each_m_, int each_n_>
struct Tile {
  static constexpr int m = m_, n = n_, each_m = each_m_, each_n = each_n_;
  static constexpr int groups_m = m / each_m, groups_n = n / each_n, threads = groups_m * groups_n;
  // Blocks that a multiprocessor is to hold at once: 128 registers for a thread, or 80 where it has few sums.
  static constexpr int resident = (each_m * each_n > 8 ? 512 : 768) / threads;
  static_assert(m % each_m == 0 && n % each_n == 0, "threads have equal shares");
};

// 64 × 64, or, in fp64, half of it, whose sums take as many registers.
template <typename T>
using LargeTile = std::conditional_t<sizeof(T) == 8, Tile<64, 32, 4, 4>, Tile<64, 64, 8, 4>>;

// Products of a sum that are made between two barriers: 64 bytes of them.
template <typename A>
constexpr int kDepth = 64 / sizeof(A);

// The operands: while one pair of tiles is multiplied, the next is filled. The padding keeps rows aligned to
// 16 bytes, and spreads over the banks what is stored along d.
template <typename A, typename Tile>
struct alignas(16) Operands {
  A m[2][kDepth<A>][Tile::m + 4];
  A n[2][kDepth<A>][Tile::n + 4];
};

// The sums of a thread. It has runs of up to 4 neighbours along m and n, which it reads with one access; with
// 8 × 4 sums, 32 multiplications follow three such reads.
template <typename A, typename Tile>
struct Products {
  A v[Tile::each_m][Tile::each_n] = {};

  static __device__ int m_of(int i) { return place<Tile::each_m, Tile::groups_m>(group_m(), i); }
  static __device__ int n_of(int j) { return place<Tile::each_n, Tile::groups_n>(group_n(), j); }

  // Of one step. In fp32 its sums are made apart, so that none has very many terms: one addition more for 16
  // products, and the error of a sum of 1,000 is a fourth.
  __device__ void add(const A (&m)[kDepth<A>][Tile::m + 4], const A (&n)[kDepth<A>][Tile::n + 4]) {
    if constexpr (sizeof(A) == 8) {
      multiply(m, n, v);
    } else {
      A some[Tile::each_m][Tile::each_n] = {};
      multiply(m, n, some);
#pragma unroll
      for (int i = 0; i < Tile::each_m; ++i)
#pragma unroll
        for (int j = 0; j < Tile::each_n; ++j) v[i][j] += some[i][j];
    }
  }

 private:
  static __device__ void multiply(const A (&m)[kDepth<A>][Tile::m + 4], const A (&n)[kDepth<A>][Tile::n + 4],
                                  A (&to)[Tile::each_m][Tile::each_n]) {
#pragma unroll 4
    for (int d = 0; d < kDepth<A>; ++d) {
      A a[Tile::each_m], b[Tile::each_n];
      read<Tile::groups_m>(m[d], group_m(), a);
      read<Tile::groups_n>(n[d], group_n(), b);
#pragma unroll
      for (int i = 0; i < Tile::each_m; ++i)
#pragma unroll
        for (int j = 0; j < Tile::each_n; ++j) to[i][j] = multiply_add(a[i], b[j], to[i][j]);
    }
  }
  static __device__ int group_m() { return static_cast<int>(threadIdx.x) / Tile::groups_n; }
  static __device__ int group_n() { return static_cast<int>(threadIdx.x) % Tile::groups_n; }
  template <int each, int groups>
  static __device__ int place(int group, int i) {
    constexpr int run = each < 4 ? each : 4;
    return (i / run * groups + group) * run + i % run;
  }
  template <int groups, int each>
  static __device__ void read(const A* row, int group, A (&to)[each]) {
    constexpr int run = each < 4 ? each : 4;
#pragma unroll
    for (int i = 0; i < each; i += run) {
      const auto pack = *reinterpret_cast<const Pack<A, run>*>(row + place<each, groups>(group, i));
#pragma unroll
      for (int u = 0; u < run; ++u) to[i + u] = pack.v[u];
    }
  }
};

// How many packs of `width` elements of a tile (depth × side) a thread brings, and which: f(i, d, s) for its
// i-th, whose first element is at (d, s). Packs lie along the side or along the depth, and neighbouring
// threads have neighbours in that direction.
template <typename Tile, int side, int depth, int width>
constexpr int kPacks = (side * depth / width + Tile::threads - 1) / Tile::threads;

template <typename Tile, int side, int depth, int width, typename F>
__device__ inline void for_packs(bool along_side, F f) {
  constexpr int packs = side * depth / width;
#pragma unroll
  for (int i = 0; i < kPacks<Tile, side, depth, width>; ++i) {
    const unsigned e = threadIdx.x + static_cast<unsigned>(i) * Tile::threads;
    constexpr unsigned in_side = side >= width ? side / width : 1;
    constexpr unsigned in_depth = depth >= width ? depth / width : 1;
    const unsigned d = along_side ? e / in_side : e % in_depth * width;
    const unsigned s = along_side ? e % in_side * width : e / in_depth;
    if (packs % Tile::threads == 0 || e < packs) f(i, static_cast<int>(d), static_cast<int>(s));
  }
}

// The pack at p; zeros where there is none.
template <typename T, int width>
__device__ inline Pack<T, width> fetch(const T* p, bool exists) {
  Pack<T, width> v;
#pragma unroll
  for (int u = 0; u < width; ++u) v.v[u] = from_acc<T>(0);
  if (exists) v = *reinterpret_cast<const Pack<T, width>*>(p);
  return v;
}

// A long sum of few additions: of those that threads make beside many products. What each addition rounds off
// (Knuth's two-sum, exactly) is added up too, so the error is that of a single rounding, mostly.
template <typename A>
struct ExactSum {
  A sum = 0, rest = 0;
  __device__ void add(A v) {
    const A t = sum + v, of_v = t - sum;
    rest += (sum - (t - of_v)) + (v - of_v);
    sum = t;
  }
  __device__ A total() const {
    const A t = sum + rest;
    return t == t ? t : sum;  // beside infinity, the rest is NaN
  }
};

// ---- where elements are --------------------------------------------------------------------------

// Coordinates of what does not exist: outside of everything, whatever is added. All others are smaller, so
// that sums fit into 32 bits (check_extents).
constexpr int kNowhere = -(1 << 30);

// Whether a coordinate is in [0, size).
__device__ inline bool within(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

inline void check_extents(const ConvParams& p) {
  constexpr int64_t limit = int64_t{1} << 29;
  const auto large = [](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation) {
    return in >= limit || pad >= limit || stride >= limit || kernel >= limit || out >= limit / stride ||
           kernel * dilation >= limit;
  };
  if (p.in.d != 1 || p.out.d != 1 || p.kernel.d != 1 ||
      large(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) ||
      large(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w) ||
      imax(p.c, p.k) / p.groups * volume(p.kernel) >= limit)
    throw std::invalid_argument("fastops: convolution: a size is beyond what the kernels count in 32 bits");
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
