// The backward of batch normalisation on the CPU, and the gradients of the backward.
//
// Notation, per channel with m elements: μ mean, r = invstd, x̂ = (x − μ)·r, w weight, b bias; z = w·x̂ + b
// plus a residual, y = z or relu(z). Sums over a channel are kept centred, Σ dz·(x − μ), never as
// differences of raw moments.
//
// activation.  dz = dy, or with a ReLU dy where y > 0 or NaN, else 0; it is the residual's gradient.
//
// backward, training.  ∂x̂ᵢ/∂xⱼ = r·(δᵢⱼ − 1/m − x̂ᵢ·x̂ⱼ/m), so with the symmetric operator
//   P v = v − Σv/m − x̂·Σ(v·x̂)/m
//   dx = w·r·P dz,  dw = D = Σ dz·x̂,  db = S = Σ dz.
// In evaluation μ and r are constants: dx = w·r·dz.
//
// double_backward (without a ReLU: dy = dz).  L = ⟨g, dx⟩ + u·dw + v·db with g = ddx, u = ddw, v = ddb. With
// Q = ⟨g, P dy⟩ = F − S·G/m − D·E/m, where F = Σ g·dy, G = Σ g, E = Σ g·x̂:  L = w·r·Q + u·D + v·S.
//   gdy = ∂L/∂dy = w·r·P g + u·x̂ + v            (P is symmetric)
//   gw  = ∂L/∂w  = r·Q
//   gx: L depends on x through x̂ and through r.
//     t = ∂L/∂x̂ = −(w·r/m)·(E·dy + D·g) + u·dy, which reaches x as r·P t
//     ∂L/∂r = w·Q, and ∂r/∂xᵢ = −r²·x̂ᵢ/m
//     gx = r·P t − (w·r²·Q/m)·x̂, where Σt = −(w·r/m)·(E·S + D·G) + u·S, Σ t·x̂ = −2·(w·r/m)·D·E + u·D
// In evaluation: gdy = w·r·g + u·x̂ + v, gw = r·F, gx = u·r·dy.
// So every output is a sum of dy, g, x − μ and 1 with coefficients that belong to the channel.
#include "batch_norm_common.h"
#include "dispatch.h"

namespace fastops {
namespace cpu {
namespace {

// One vector of dz. With a ReLU it is also left in `out`, unless that is null.
template <typename T, bool relu, bool add>
struct ActivationGradient {
  const T* dy;
  const T* x;
  const T* residual;
  T* out;
  template <typename Part>
  Vec<Acc<T>> operator()(int64_t i, const Vec<Acc<T>>* k, Part part) const {
    Vec<Acc<T>> dz = part.load(dy + i);
    if constexpr (relu) {
      dz = through_relu<T>(pre_activation<T, add>(x, residual, i, k, part), dz);
      if (out) part.store(out + i, dz);
    }
    return dz;
  }
};

// dx from sums that have become tables 3 and 4.
template <typename T, bool relu, bool add>
void input_gradient(const BatchNormParams& p, const BatchNormSplit& s, const Acc<T>* tables,
                    ActivationGradient<T, relu, add> dz, const T* x, T* dx, int threads) {
  using A = Acc<T>;
  if (p.training)
    map_channels<T, 5>(p, s, tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
      part.store(dx + i, dz(i, k, part) * k[1] + ((part.load(x + i) - k[0]) * k[3] + k[4]));
    });
  else
    map_channels<T, 3>(p, s, tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
      part.store(dx + i, dz(i, k, part) * k[1]);
    });
}

template <typename T, bool relu, bool add>
void backward(const BatchNormParams& p, const T* dy, const T* x, const void* weight, const void* bias,
              const void* mean, const void* invstd, const T* residual, T* dx, void* dw, void* db,
              T* dresidual, void* workspace, int threads) {
  using A = Acc<T>;
  const BatchNormSplit s = batch_norm_split(p);
  const Workspace<A> ws(workspace, s, 2, 5);
  const double m = elements(p);
  // db alone needs one sum, without x; a ReLU reads x anyway.
  const bool two_sums = m > 0 && ((p.training && dx) || dw || (relu && db));
  // With a ReLU the first pass over dy leaves dz in dresidual, where that is wanted: a second reads it there.
  const bool kept = relu && dresidual && two_sums;
  ActivationGradient<T, relu, add> dz{dy, x, residual, dresidual};
  pre_activation_tables(p, s, weight, bias, mean, invstd, ws.tables);
  for (int64_t j = 0; j < 2 * s.stride; ++j) ws.totals[j] = 0;
  if (two_sums)
    sum_channels<T, 2, 3>(p, s, ws.tables, ws.totals, ws.partials, threads,
                          [=](int64_t i, const Vec<A>* k, auto part, Vec<A>* v) {
                            const Vec<A> d = part.keep(dz(i, k, part));
                            v[0] += d;
                            v[1] += d * part.keep(part.load(x + i) - k[0]);  // 0 · ∞ would be NaN
                          });
  else if constexpr (!relu)
    if (m > 0 && db)
      sum_channels<T, 1, 3>(
          p, s, ws.tables, ws.totals, ws.partials, threads,
          [=](int64_t i, const Vec<A>* k, auto part, Vec<A>* v) { v[0] += part.keep(dz(i, k, part)); });
  for (int64_t c = 0; c < p.c; ++c) {
    const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
    const double sum = ws.totals[c], dot = ws.totals[s.stride + c] * r;
    set(p.param_dtype, db, c, sum);
    set(p.param_dtype, dw, c, dot);
    const double scale = r * get(p.param_dtype, weight, c, 1);
    ws.tables[3 * s.stride + c] = static_cast<A>(-scale * r * (dot / m));
    ws.tables[4 * s.stride + c] = static_cast<A>(-scale * (sum / m));
  }
  if (m == 0) return;
  fold(p, s, ws.tables + 3 * s.stride, 2);
  if (dx && kept)
    input_gradient(p, s, ws.tables, ActivationGradient<T, false, false>{dresidual, x, nullptr, nullptr}, x,
                   dx, threads);
  else if (dx)
    input_gradient(p, s, ws.tables, dz, x, dx, threads);
  if (!dresidual || kept || (relu && dx)) return;
  dz.out = nullptr;
  map_channels<T, 3>(p, s, ws.tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
    part.store(dresidual + i, dz(i, k, part));
  });
}

}  // namespace

// ---- launchers ---------------------------------------------------------------------------------

template <>
void batch_norm_backward<kIsa>(const BatchNormParams& p, const void* dy, const void* x, const void* weight,
                               const void* bias, const void* mean, const void* invstd, const void* residual,
                               void* dx, void* dw, void* db, void* dresidual, void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto relu, auto add) {
      backward<T, relu.value, add.value>(p, static_cast<const T*>(dy), static_cast<const T*>(x), weight, bias,
                                         mean, invstd, static_cast<const T*>(residual), static_cast<T*>(dx),
                                         dw, db, static_cast<T*>(dresidual), workspace, threads);
    };
    if (!p.relu)
      run(std::false_type{}, std::false_type{});  // the residual does not matter
    else
      dispatch_flag(residual != nullptr, [&](auto add) { run(std::true_type{}, add); });
  });
}

template <>
void batch_norm_double_backward<kIsa>(const BatchNormParams& p, const void* mean, const void* invstd,
                                      const void* weight, const void* x_, const void* dy_, const void* ddx,
                                      const void* ddw, const void* ddb, void* gx_, void* gw, void* gdy_,
                                      void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const BatchNormSplit s = batch_norm_split(p);
    const Workspace<A> ws(workspace, s, 5, 8);
    const T *const x = static_cast<const T*>(x_), *const dy = static_cast<const T*>(dy_);
    const T* const g = static_cast<const T*>(ddx);
    T *const gx = static_cast<T*>(gx_), *const gdy = static_cast<T*>(gdy_);
    const double m = elements(p);
    for (int64_t j = 0; j < 5 * s.stride; ++j) ws.totals[j] = 0;
    for (int64_t c = 0; c < p.c; ++c) ws.tables[c] = static_cast<const A*>(mean)[c];
    fold(p, s, ws.tables, 1);
    if (m > 0 && (p.training || gw))
      sum_channels<T, 5, 1>(p, s, ws.tables, ws.totals, ws.partials, threads,
                            [=](int64_t i, const Vec<A>* k, auto part, Vec<A>* v) {
                              const Vec<A> d = dy ? part.keep(part.load(dy + i)) : Vec<A>{};
                              const Vec<A> h = g ? part.keep(part.load(g + i)) : Vec<A>{};
                              const Vec<A> centred = x ? part.load(x + i) - k[0] : Vec<A>{};
                              v[0] += d;
                              v[1] += h;
                              v[2] += d * centred;
                              v[3] += h * centred;
                              v[4] += h * d;
                            });
    for (int64_t c = 0; c < p.c; ++c) {
      const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
      const double w = get(p.param_dtype, weight, c, 1), wr = w * r;
      const double u = get(p.param_dtype, ddw, c, 0), v = get(p.param_dtype, ddb, c, 0);
      double k[7] = {u * r, 0, 0, 0, wr, u * r, v};  // of dy, g, x − μ, 1 in gx; of g, x − μ, 1 in gdy
      double Q = ws.totals[4 * s.stride + c];
      if (p.training && m > 0) {
        const double S = ws.totals[c], G = ws.totals[s.stride + c];
        const double D = ws.totals[2 * s.stride + c] * r, E = ws.totals[3 * s.stride + c] * r;
        Q -= S * G / m + D * E / m;
        k[0] = r * (u - wr * E / m);
        k[1] = -r * wr * D / m;
        k[2] = -r * r * ((u * D - 2 * wr * D * E / m) / m) - wr * r * r * Q / m;
        k[3] = -r * (u * S - wr * (E * S + D * G) / m) / m;
        k[5] = u * r - wr * r * E / m;
        k[6] = v - wr * G / m;
      }
      set(p.param_dtype, gw, c, r * Q);
      for (int i = 0; i < 7; ++i) ws.tables[(i + 1) * s.stride + c] = static_cast<A>(k[i]);
    }
    if (m == 0 || (!gx && !gdy)) return;
    fold(p, s, ws.tables, 8);
    map_channels<T, 8>(p, s, ws.tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
      const Vec<A> d = dy ? part.load(dy + i) : Vec<A>{}, h = g ? part.load(g + i) : Vec<A>{};
      const Vec<A> centred = x ? part.load(x + i) - k[0] : Vec<A>{};
      if (gx) part.store(gx + i, d * k[1] + (h * k[2] + (centred * k[3] + k[4])));
      if (gdy) part.store(gdy + i, h * k[5] + (centred * k[6] + k[7]));
    });
  });
}

}  // namespace cpu
}  // namespace fastops
