// The gradients of batch normalisation's backward pass on the GPU: sums, coefficients, one elementwise pass.
// The formulas are derived in csrc/cpu/batch_norm.cpp; the notation is the same.
#include "normalise.h"

namespace fastops {
namespace cuda {
namespace {

template <typename T>
struct DoubleTensors {
  static constexpr int inputs = 3, batch = 2;
  const T* in[3];  // dy, ddx, x
};

// Σ dy, Σ g, Σ dy·(x − μ), Σ g·(x − μ), Σ g·dy, with g = ddx
template <typename T>
struct DoubleSums : DoubleTensors<T> {
  using A = Acc<T>;
  using Item = Sums<A, 5>;
  using Coefficients = A;
  static constexpr int sums = 5;
  const A* mean;

  __device__ A coefficients(int64_t c, int64_t) const { return this->in[2] ? mean[c] : A(0); }
  __device__ void add(A mu, const A (&x)[3], A (&v)[5]) const {
    const A centred = x[2] - mu;
    v[0] += x[0];
    v[1] += x[1];
    v[2] = multiply_add(x[0], centred, v[2]);
    v[3] = multiply_add(x[1], centred, v[3]);
    v[4] = multiply_add(x[0], x[1], v[4]);
  }
  template <int items, int per>
  __device__ void accumulate(A mu, const A (&x)[3][items][per], int valid, int, Item& all) const {
    accumulate_terms(*this, mu, x, valid, all);
  }
  __device__ void partial(A, const Item& all, double* out) const {
#pragma unroll
    for (int i = 0; i < 5; ++i) out[i] = static_cast<double>(all.v[i]);
  }
};

// gx = dy·x[0] + g·x[1] + (x − μ)·x[2] + x[3];  gdy = g·dy[0] + (x − μ)·dy[1] + dy[2]
template <typename A>
struct DoubleCoefficients {
  A mean, x[4], dy[3];
};

template <typename T>
struct FinishDouble {
  using A = Acc<T>;
  static constexpr int sums = 5;
  const A* mean;
  const A* invstd;
  Parameter<T> weight, ddw, ddb;
  MutableParameter<T> gw;
  DoubleCoefficients<A>* coefficients;
  double m;
  bool training, has_x;

  __device__ void operator()(const Parts<sums>& parts, int64_t c) const {
    double sum[5] = {};
    parts.for_each([&](const double* part) {
#pragma unroll
      for (int i = 0; i < 5; ++i) sum[i] += part[i];
    });
#pragma unroll
    for (int i = 0; i < 5; ++i) sum[i] = parts.over_warp(sum[i]);
    if (threadIdx.x % 32 != 0) return;
    const double r = static_cast<double>(invstd[c]);
    const double wr = static_cast<double>(weight.get(c, 1)) * r;
    const double u = static_cast<double>(ddw.get(c, 0)), v = static_cast<double>(ddb.get(c, 0));
    double x[4] = {u * r, 0, 0, 0}, dy[3] = {wr, u * r, v}, q = sum[4];
    if (training && m > 0) {
      const double s = sum[0], g = sum[1], d = sum[2] * r, e = sum[3] * r;
      q -= s * g / m + d * e / m;
      x[0] = r * (u - wr * e / m);
      x[1] = -r * wr * d / m;
      x[2] = -r * r * ((u * d - 2 * wr * d * e / m) / m) - wr * r * r * q / m;
      x[3] = -r * (u * s - wr * (e * s + d * g) / m) / m;
      dy[1] = u * r - wr * r * e / m;
      dy[2] = v - wr * g / m;
    }
    gw.set(c, r * q);
    DoubleCoefficients<A> k;
    k.mean = has_x ? mean[c] : A(0);
    for (int i = 0; i < 4; ++i) k.x[i] = static_cast<A>(x[i]);
    for (int i = 0; i < 3; ++i) k.dy[i] = static_cast<A>(dy[i]);
    coefficients[c] = k;
  }
};

template <typename T>
struct DoubleMap : DoubleTensors<T> {
  using A = Acc<T>;
  using Coefficients = DoubleCoefficients<A>;
  static constexpr int outputs = 2, batch = 1;
  T* out[2];  // gx, gdy
  const Coefficients* table;

  __device__ Coefficients coefficients(int64_t c) const { return table[c]; }
  __device__ void map(const Coefficients& k, const A (&x)[3], T (&y)[2]) const {
    const A centred = x[2] - k.mean;
    const A rest = multiply_add(centred, k.x[2], k.x[3]);
    y[0] = from_acc<T>(multiply_add(x[0], k.x[0], multiply_add(x[1], k.x[1], rest)));
    y[1] = from_acc<T>(multiply_add(x[1], k.dy[0], multiply_add(centred, k.dy[1], k.dy[2])));
  }
};
// Packs of 8 bytes: the eight coefficients of each channel of a pack are in registers.
constexpr int kDoubleBytes = 8;
constexpr int64_t kDoubleCoefficients = 8;  // for each channel, of the accumulator's size

}  // namespace

// ---- launchers -------------------------------------------------------------------------------------

int64_t batch_norm_double_backward_workspace(const BatchNormParams& p) {
  if (p.c * p.n * volume(p.in) == 0) return coefficient_bytes(p, kDoubleCoefficients);
  return workspace_bytes(p, cut_to_reduce(p, kDoubleBytes), 5, kDoubleCoefficients);
}

void batch_norm_double_backward(const BatchNormParams& p, const void* mean_, const void* invstd_,
                                const void* weight, const void* x, const void* dy, const void* ddx,
                                const void* ddw, const void* ddb, void* gx, void* gw, void* gdy,
                                void* workspace, void* stream) {
  if (p.c == 0 || (gx == nullptr && gw == nullptr && gdy == nullptr)) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const A *const mean = static_cast<const A*>(mean_), *const invstd = static_cast<const A*>(invstd_);
    const DoubleTensors<T> tensors{
        {static_cast<const T*>(dy), static_cast<const T*>(ddx), static_cast<const T*>(x)}};
    auto* const coefficients = static_cast<DoubleCoefficients<A>*>(workspace);
    double* const partials = partials_in(workspace, p, kDoubleCoefficients);
    const double m = elements_of(p);
    Slabs s{};
    s.channels = p.c;
    if (m > 0 && (p.training || gw != nullptr)) {
      s = cut_to_reduce(p, kDoubleBytes);
      reduce_channels<T, kDoubleBytes>("batch_norm_double_backward", s, DoubleSums<T>{tensors, mean},
                                       partials, stream);
    }
    const FinishDouble<T> finish{mean,
                                 invstd,
                                 Parameter<T>(p, weight),
                                 Parameter<T>(p, ddw),
                                 Parameter<T>(p, ddb),
                                 MutableParameter<T>(p, gw),
                                 coefficients,
                                 m,
                                 p.training,
                                 x != nullptr};
    finish_channels("batch_norm_double_backward", s, finish, partials, stream);
    if (m > 0 && (gx != nullptr || gdy != nullptr))
      map_channels<T, kDoubleBytes>(
          "batch_norm_double_backward", cut_to_map(p, kDoubleBytes),
          DoubleMap<T>{tensors, {static_cast<T*>(gx), static_cast<T*>(gdy)}, coefficients}, stream);
  });
}

}  // namespace cuda
}  // namespace fastops
