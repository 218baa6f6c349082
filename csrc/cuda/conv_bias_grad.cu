// db[k] = Σ dy over the batch and all positions: a sum over channels, as batch norm makes them. dy may be
// empty: then db is 0.
#include "../conv.h"
#include "channelwise.h"

namespace fastops {
namespace cuda {
namespace {

template <typename T>
struct BiasSum {
  using A = Acc<T>;
  using Item = Sums<A, 1>;
  struct Coefficients {};
  static constexpr int inputs = 1, sums = 1, batch = 4;
  const T* in[inputs];  // dy

  __device__ Coefficients coefficients(int64_t, int64_t) const { return {}; }
  __device__ void add(const Coefficients&, const A (&x)[inputs], A (&v)[1]) const { v[0] += x[0]; }
  template <int items, int per>
  __device__ void accumulate(const Coefficients& k, const A (&x)[inputs][items][per], int valid, int,
                             Item& all) const {
    accumulate_terms(*this, k, x, valid, all);
  }
  __device__ void partial(const Coefficients&, const Item& all, double* out) const {
    out[0] = static_cast<double>(all.v[0]);
  }
};

template <typename T>
struct FinishBias {
  static constexpr int sums = 1;
  T* db;

  __device__ void operator()(const Parts<sums>& parts, int64_t k) const {
    double sum = 0;
    parts.for_each([&](const double* part) { sum += part[0]; });
    sum = parts.over_warp(sum);
    if (threadIdx.x % 32 == 0) db[k] = from_acc<T>(static_cast<Acc<T>>(sum));
  }
};

// How dy is cut; in no splits at all if it is empty.
Slabs slabs_of_dy(const ConvParams& p) {
  if (p.n * p.k * volume(p.out) == 0) {
    Slabs s{};
    s.channels = p.k;
    return s;
  }
  BatchNormParams of_dy;
  of_dy.dtype = p.dtype;
  of_dy.channels_last = p.channels_last || volume(p.out) == 1;
  of_dy.n = p.n;
  of_dy.c = p.k;
  of_dy.in = p.out;
  return cut_to_reduce(of_dy);
}

}  // namespace

int64_t conv_bias_grad_workspace(const ConvParams& p) {
  const Slabs s = slabs_of_dy(p);
  return s.entries() * s.splits * static_cast<int64_t>(sizeof(double));
}

void conv_bias_grad(const ConvParams& p, const void* dy, void* db, void* workspace, void* stream) {
  if (p.k == 0) return;
  const Slabs s = slabs_of_dy(p);
  auto* const partials = static_cast<double*>(workspace);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (s.splits > 0)
      reduce_channels<T, 16>("conv_bias_grad", s, BiasSum<T>{{static_cast<const T*>(dy)}}, partials, stream);
    finish_channels("conv_bias_grad", s, FinishBias<T>{static_cast<T*>(db)}, partials, stream);
  });
}

}  // namespace cuda
}  // namespace fastops
