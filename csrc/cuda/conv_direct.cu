// Convolution and its input gradient for anything: any shape, stride, dilation, groups, dtype and layout.
//
// Both are sums over taps (TapAxis of geometry.h): the input gradient is one such problem for each phase of
// the stride, all of them in one launch, and multiplies no zeros. A block computes a tile of pixels of a
// phase × output channels of a group. Its sums run over terms: pairs of a tap and a channel of the source,
// numbered so that neighbours are neighbours in memory.
#include "conv_families.h"
#include "tiles.h"

namespace fastops {
namespace cuda {
namespace {

// For groups of few channels: 128 pixels × 8.
using SmallTile = Tile<128, 8, 4, 2>;

// Options of one axis.
struct ConvAxis {
  int64_t in, out, kernel, stride, pad, dilation;
};

// What is computed, as the kernel sees it: "source" is x, or dy in the input gradient; "out" is y, or dx.
struct TapProblem {
  bool input_grad;
  ConvAxis h, w;
  int64_t n;
  int source_h, source_w;
  int terms, outs;  // channels of a group in the source, in the output
  int groups, channel_tiles, phases_h, phases_w;
  Strides source, out;
  int64_t w_group, w_out, w_term, w_tap;  // strides of the weights
  // Which of neighbouring elements neighbouring threads take, and which terms are neighbours.
  bool along_pixels, along_outs, taps_first;
  bool relu;

  TapProblem(const ConvParams& p, bool gradient)
      : input_grad(gradient),
        h{p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h},
        w{p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w},
        n(p.n),
        source_h(static_cast<int>(gradient ? p.out.h : p.in.h)),
        source_w(static_cast<int>(gradient ? p.out.w : p.in.w)),
        groups(static_cast<int>(p.groups)),
        channel_tiles(1),
        phases_h(static_cast<int>(gradient ? imin(p.stride.h, p.in.h) : 1)),
        phases_w(static_cast<int>(gradient ? imin(p.stride.w, p.in.w) : 1)),
        source(p.channels_last, gradient ? p.k : p.c, gradient ? p.out : p.in),
        out(p.channels_last, gradient ? p.c : p.k, gradient ? p.in : p.out),
        relu(p.relu && !gradient) {
    const int64_t c = p.c / p.groups, k = p.k / p.groups, taps = conv_taps(p);
    const int64_t of_c = p.weight_channels_last ? 1 : taps;
    terms = static_cast<int>(gradient ? k : c);
    outs = static_cast<int>(gradient ? c : k);
    w_group = k * c * taps;
    w_tap = p.weight_channels_last ? c : 1;
    w_term = gradient ? c * taps : of_c;
    w_out = gradient ? of_c : c * taps;
    along_pixels = !p.channels_last;
    along_outs = gradient;
    taps_first = !p.channels_last && !p.weight_channels_last;
  }
  __device__ TapAxis axis(const ConvAxis& a, int64_t phase) const {
    return input_grad ? input_grad_taps(a.in, a.out, a.kernel, a.stride, a.pad, a.dilation, phase)
                      : forward_taps(a.in, a.out, a.kernel, a.stride, a.pad, a.dilation);
  }
};

// The place in the source of a pixel's first tap and the group's first channel, with its coordinates; and the
// pixel's in the output.
struct Pixel {
  int64_t source, out;
  int h, w;
};
// What a term adds to them; and its place in the weights.
struct Term {
  int64_t source, weight;
  int h, w;
};

__device__ inline Pixel pixel_at(const TapProblem& p, const TapAxis& h, const TapAxis& w, int group,
                                 int64_t index) {
  if (index >= p.n * h.grid * w.grid) return {0, 0, kNowhere, kNowhere};
  int64_t row, image;
  if (index < int64_t{1} << 31) {
    row = static_cast<unsigned>(index) / static_cast<unsigned>(w.grid);
    image = static_cast<unsigned>(row) / static_cast<unsigned>(h.grid);
  } else {
    row = index / w.grid;
    image = row / h.grid;
  }
  const int64_t gw = index - row * w.grid, gh = row - image * h.grid;
  const int64_t ih = gh * h.step + h.off0, iw = gw * w.step + w.off0;
  const int64_t oh = h.out0 + gh * h.out_step, ow = w.out0 + gw * w.out_step;
  return {image * p.source.n + int64_t{group} * p.terms * p.source.c + ih * p.source.h + iw * p.source.w,
          image * p.out.n + oh * p.out.h + ow * p.out.w, static_cast<int>(ih), static_cast<int>(iw)};
}

__device__ inline Term term_at(const TapProblem& p, const TapAxis& h, const TapAxis& w, unsigned index) {
  const unsigned taps = static_cast<unsigned>(h.taps * w.taps), channels = static_cast<unsigned>(p.terms);
  if (index >= taps * channels) return {0, 0, kNowhere, kNowhere};
  const unsigned outer = index / (p.taps_first ? taps : channels);
  const unsigned inner = index - outer * (p.taps_first ? taps : channels);
  const unsigned tap = p.taps_first ? inner : outer, channel = p.taps_first ? outer : inner;
  const unsigned th = tap / static_cast<unsigned>(w.taps), tw = tap - th * static_cast<unsigned>(w.taps);
  const int64_t dh = th * h.off_step, dw = tw * w.off_step;
  const int64_t number = (h.tap0 + th * h.tap_step) * p.w.kernel + w.tap0 + tw * w.tap_step;
  return {channel * p.source.c + dh * p.source.h + dw * p.source.w, channel * p.w_term + number * p.w_tap,
          static_cast<int>(dh), static_cast<int>(dw)};
}

template <typename T, int width, typename Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::resident)
    direct_conv_kernel(TapProblem p, const T* source, const T* w, const T* bias, T* out) {
  using A = Acc<T>;
  constexpr int M = Tile::m, N = Tile::n, D = kDepth<A>;
  union Memory {
    Operands<A, Tile> operands;
    A results[N][M + 1];
  };
  FASTOPS_SHARED(memory, Memory);
  FASTOPS_SHARED(pixels, Pixel[M]);
  FASTOPS_SHARED(terms, Term[2][D]);
  FASTOPS_SHARED(outs, int64_t[N]);  // places in the weights; negative: there is none
  FASTOPS_SHARED(axes, TapAxis[2]);
  const int t = threadIdx.x;
  const unsigned channel_tiles = static_cast<unsigned>(p.channel_tiles * p.groups);
  const unsigned phases = static_cast<unsigned>(p.phases_h * p.phases_w);
  const unsigned part = blockIdx.x / channel_tiles, channel_tile = blockIdx.x - part * channel_tiles;
  const unsigned pixel_tile = part / phases, phase = part - pixel_tile * phases;
  const unsigned phase_h = phase / static_cast<unsigned>(p.phases_w);
  const int group = static_cast<int>(channel_tile) / p.channel_tiles;
  const int first_out = (static_cast<int>(channel_tile) - group * p.channel_tiles) * N;
  if (t < 2) axes[t] = t == 0 ? p.axis(p.h, phase_h) : p.axis(p.w, phase - phase_h * p.phases_w);
  __syncthreads();
  for (int i = t; i < M; i += Tile::threads)
    pixels[i] = pixel_at(p, axes[0], axes[1], group, pixel_tile * int64_t{M} + i);
  if (t < D) terms[0][t] = term_at(p, axes[0], axes[1], t);
  if (t < N) outs[t] = first_out + t < p.outs ? group * p.w_group + (first_out + t) * p.w_out : -1;
  __syncthreads();
  // The first phase has the most pixels; in others the last tiles may have none.
  const bool empty = pixels[0].h == kNowhere;
  const int steps = empty ? 0 : static_cast<int>(ceil_div(axes[0].taps * axes[1].taps * p.terms, D));

  Products<A, Tile> sums;
  Pack<T, width> of_source[kPacks<Tile, M, D, width>];
  Pack<T, 1> of_weights[kPacks<Tile, N, D, 1>];
  const auto bring = [&](const Term(&step)[D]) {
    for_packs<Tile, M, D, width>(width == 1 && p.along_pixels, [&](int i, int d, int m) {
      const Term term = step[d];
      const Pixel pixel = pixels[m];
      const bool exists = within(pixel.h + term.h, p.source_h) && within(pixel.w + term.w, p.source_w);
      of_source[i] = fetch<T, width>(source + (pixel.source + term.source), exists);
    });
    for_packs<Tile, N, D, 1>(p.along_outs, [&](int i, int d, int n) {
      const int64_t out_place = outs[n];
      const bool exists = step[d].h != kNowhere && out_place >= 0;
      of_weights[i] = fetch<T, 1>(w + (step[d].weight + out_place), exists);
    });
  };
  const auto put = [&](int buffer) {
    for_packs<Tile, M, D, width>(width == 1 && p.along_pixels, [&](int i, int d, int m) {
#pragma unroll
      for (int u = 0; u < width; ++u) memory.operands.m[buffer][d + u][m] = to_acc(of_source[i].v[u]);
    });
    for_packs<Tile, N, D, 1>(p.along_outs, [&](int i, int d, int n) {
      memory.operands.n[buffer][d][n] = to_acc(of_weights[i].v[0]);
    });
  };
  // In step s the tiles s are multiplied, those of s + 1 arrive, and the terms of s + 2 are found.
  if (steps > 0) {
    bring(terms[0]);
    put(0);
    if (t < D) terms[1][t] = term_at(p, axes[0], axes[1], D + t);
  }
  __syncthreads();
  for (int s = 0; s < steps; ++s) {
    const int now = s % 2, next = 1 - now;
    if (s + 1 < steps) bring(terms[next]);
    sums.add(memory.operands.m[now], memory.operands.n[now]);
    if (t < D) terms[now][t] = term_at(p, axes[0], axes[1], (s + 2) * D + t);
    if (s + 1 < steps) put(next);
    __syncthreads();
  }

  // By way of shared memory, so that neighbouring threads store neighbours in either layout.
#pragma unroll
  for (int i = 0; i < Tile::each_m; ++i)
#pragma unroll
    for (int j = 0; j < Tile::each_n; ++j) memory.results[sums.n_of(j)][sums.m_of(i)] = sums.v[i][j];
  __syncthreads();
  for (int e = t; e < M * N; e += Tile::threads) {
    const int m = p.along_pixels ? e % M : e / N, n = p.along_pixels ? e / M : e % N;
    if (pixels[m].h == kNowhere || first_out + n >= p.outs) continue;
    const int64_t channel = int64_t{group} * p.outs + first_out + n;
    A v = memory.results[n][m];
    if (bias != nullptr) v += to_acc(bias[channel]);
    if (p.relu && v < 0) v = 0;
    out[pixels[m].out + channel * p.out.c] = from_acc<T>(v);
  }
}

void run(const char* name, const ConvParams& p, bool input_grad, const void* source, const void* w,
         const void* bias, void* out, void* stream) {
  check_extents(p);
  TapProblem problem(p, input_grad);
  const int64_t pixels =
      p.n * (input_grad ? ceil_div(p.in.h, p.stride.h) * ceil_div(p.in.w, p.stride.w) : volume(p.out));
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int width = 16 / sizeof(T);
    const auto start = [&](auto tile, auto constant) {
      using Tile = decltype(tile);
      problem.channel_tiles = static_cast<int>(ceil_div(problem.outs, Tile::n));
      const int64_t blocks = ceil_div(pixels, Tile::m) * problem.phases_h * problem.phases_w *
                             problem.channel_tiles * problem.groups;
      if (blocks >= int64_t{1} << 31)
        throw std::invalid_argument("fastops: convolution: the tensor is too large");
      launch(name, direct_conv_kernel<T, decltype(constant)::value, Tile>, static_cast<unsigned>(blocks),
             Tile::threads, 0, stream, problem, static_cast<const T*>(source), static_cast<const T*>(w),
             static_cast<const T*>(bias), static_cast<T*>(out));
    };
    const bool vectors = p.channels_last && problem.terms % width == 0 &&
                         vectors_fit(problem.terms, sizeof(T), address(source));
    if (problem.outs <= SmallTile::n)
      start(SmallTile(), Width<1>());
    else if (vectors)
      start(LargeTile<T>(), Width<width>());
    else
      start(LargeTile<T>(), Width<1>());
  });
}

}  // namespace

void direct_conv(const ConvParams& p, const ConvPlan&, const void* x, const void* w, const void* bias,
                 void* y, void* stream) {
  run("conv", p, false, x, w, bias, y, stream);
}

void direct_input_grad(const ConvParams& p, const ConvPlan&, const void* dy, const void* w, const void* bias,
                       void* dx, void* stream) {
  run("conv_input_grad", p, true, dy, w, bias, dx, stream);
}

}  // namespace cuda
}  // namespace fastops
