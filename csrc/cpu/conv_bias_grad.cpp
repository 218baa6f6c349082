// Bias gradient of a convolution on the CPU: db[k] = Σ dy over the batch and all positions.
#include "../conv.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// Sums in vectors of short runs; the runs are added up in fp64, so that terms which cancel across runs,
// images and lanes cost no digits.
constexpr int64_t kBiasRun = 16;

template <typename A>
using WideSum = typename VectorOf<double, kLanes<A>>::type;

template <typename T>
void run_bias_grad(const ConvParams& p, const T* dy, T* db, int threads) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const int64_t plane = volume(p.out), positions = p.n * plane;
  if (p.channels_last) {  // one vector of channels a task
    parallel_for(threads, ceil_div(p.k, L), positions, [&](int64_t block, int) {
      const int64_t k = block * L, count = imin(L, p.k - k);
      WideSum<A> total{};
      for (int64_t i0 = 0; i0 < positions; i0 += kBiasRun) {
        Vec<A> sum{};
        const int64_t i1 = imin(i0 + kBiasRun, positions);
        if (count == L)
          for (int64_t i = i0; i < i1; ++i) sum += load(dy + i * p.k + k);
        else
          for (int64_t i = i0; i < i1; ++i) sum += load_first(dy + i * p.k + k, count);
        total += __builtin_convertvector(sum, WideSum<A>);
      }
      for (int64_t l = 0; l < count; ++l) db[k + l] = from_acc<T>(static_cast<A>(total[l]));
    });
    return;
  }
  parallel_for(threads, p.k, positions / L, [&](int64_t k, int) {
    WideSum<A> lanes{};
    double total = 0;
    for (int64_t n = 0; n < p.n; ++n) {
      const T* from = dy + (n * p.k + k) * plane;
      int64_t i = 0;
      while (i + L <= plane) {
        Vec<A> s0{}, s1{};
        const int64_t end = imin(plane, i + 2 * L * kBiasRun);
        for (; i + 2 * L <= end; i += 2 * L) s0 += load(from + i), s1 += load(from + i + L);
        for (; i + L <= end; i += L) s0 += load(from + i);
        lanes += __builtin_convertvector(s0 + s1, WideSum<A>);
        if (end == plane) break;
      }
      for (; i < plane; ++i) total += static_cast<double>(to_acc(from[i]));
    }
    for (int64_t l = 0; l < L; ++l) total += lanes[l];
    db[k] = from_acc<T>(static_cast<A>(total));
  });
}

}  // namespace

template <>
void conv_bias_grad<kIsa>(const ConvParams& p, const void* dy, void* db, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_bias_grad(p, static_cast<const T*>(dy), static_cast<T*>(db), threads);
  });
}

}  // namespace cpu
}  // namespace fastops
