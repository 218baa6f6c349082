// Convolution of few channels (the first layer of a network on images) on tensor cores.
//
// A block computes tiles of y's pixels, one after the other, for up to 64 channels. It keeps the weights in
// shared memory, brings the patch of x under a tile there once, and builds operands from it word by word: the
// sum runs over (r, s, c), and where a term's element lies is the pixel's place plus the term's. An implicit
// GEMM would fill up each tap to 8 channels (392 products for the 147 of 7×7×3), and load an element of x
// once for each tap.
#include "conv_stem.h"

namespace fastops {
namespace cuda {
namespace {

struct StemForwardArgs {
  StemArgs of;
  int row_words, steps, weight_pitch, words_at, bias_at, patch_at, staged_at;
  int column_tiles;
  bool weight_channels_last, relu, wide_stores;
  Divider<int32_t> by_terms;  // elements of a sum, filled up
};

// A word of the sum's terms: where it is, in bytes from a pixel's first, and which bits of it count. What
// does not count may be anything, NaN too.
struct Word {
  int offset;
  uint32_t mask;
};

// Rows of the product: the pixels of a tile. Of a step's 16 words, mma wants (t, t + 4) and (t + 8, t + 12).
template <typename T, typename S>
struct PixelRows {
  const unsigned char* patch;
  const Word* words;  // of the step
  int row0;           // of the warp
  int base[S::kM][2];

  __device__ PixelRows(const StemArgs& a, const unsigned char* patch_, int row0_, int lane)
      : patch(patch_), words(nullptr), row0(row0_) {
#pragma unroll
    for (int i = 0; i < S::kM; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row0 + 16 * i + 8 * half + lane / 4;
        const int along = m % kStemColumns * a.to_right;
        const int second = sizeof(T) == 2 && along % 2 != 0 ? a.second + 1 : 0;
        base[i][half] = static_cast<int>(sizeof(T)) * (m / kStemColumns * a.to_below + along + second);
      }
  }
  __device__ void load_a(uint32_t (&a)[4], int first, int step, int lane) const {
    const int i = (first - row0) / 16;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Word word = words[8 * step + 4 * r + lane % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a[2 * r + half] = *reinterpret_cast<const uint32_t*>(patch + base[i][half] + word.offset) & word.mask;
    }
  }
};

// Columns: the weights of a channel, in the words' order.
struct WeightColumns {
  const unsigned char* bytes;  // of the step
  int pitch;
  __device__ void load_b(uint32_t (&b)[2][2], int first, int step, int lane) const {
    uint32_t r[4];
    ldmatrix_x4(r, bytes + (first + lane / 16 * 8 + lane % 8) * pitch + step * 32 + lane / 8 % 2 * 16);
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
};

// The words, and where the term of each of their elements is in a channel of w (-1: it is none).
template <typename T, int threads>
__device__ void make_words(const StemForwardArgs& a, Word* words, int* w_at) {
  constexpr int per = 4 / sizeof(T);
  const int row_length = a.of.kernel_w * a.of.c;
  for (int i = static_cast<int>(threadIdx.x); i < 16 * a.steps; i += threads) {
    const int r = i / a.row_words, j = (i - r * a.row_words) * per;
    const bool exists = r < a.of.kernel_h;
    words[i].offset = exists ? (r * a.of.pitch + j) * static_cast<int>(sizeof(T)) : 0;
    words[i].mask = !exists ? 0 : j + per <= row_length ? 0xFFFFFFFFu : 0xFFFFu;
#pragma unroll
    for (int u = 0; u < per; ++u) {
      const int s = (j + u) / a.of.c, channel = j + u - s * a.of.c;
      const int place =
          a.weight_channels_last ? r * row_length + j + u : (channel * a.of.kernel_h + r) * a.of.kernel_w + s;
      w_at[i * per + u] = exists && j + u < row_length ? place : -1;
    }
  }
}

// Writes a tile of y, from shared memory, in runs of what is contiguous.
template <typename T, typename S>
__device__ void store_tile(const T* staged, T* y, const StemForwardArgs& a, const StemPlace& at, int k0,
                           int columns) {
  constexpr int e = kElements<T>;
  const int outer_count = a.of.channels_last ? S::kRows : S::kColumns;
  const int run_length = a.of.channels_last ? S::kColumns : S::kRows, run_pitch = run_length + e;
  const int width = a.wide_stores ? e : 1, per_run = run_length / width;
  const int64_t area = int64_t{a.of.y_h} * a.of.y_w, image = int64_t{at.n} * a.of.k * area;
  for (int i = static_cast<int>(threadIdx.x); i < outer_count * per_run; i += S::kThreadsOf) {
    const int outer = i / per_run, inner = (i - outer * per_run) * width;
    const int m = a.of.channels_last ? outer : inner, column = a.of.channels_last ? inner : outer;
    const int p = at.p + m / kStemColumns, q = at.q + m % kStemColumns;
    if (p >= a.of.y_h || q >= a.of.y_w || column >= columns) continue;
    const int64_t pixel = int64_t{p} * a.of.y_w + q;
    T* to = y + image + (a.of.channels_last ? pixel * a.of.k + k0 + column : (k0 + column) * area + pixel);
    const T* from = staged + outer * run_pitch + inner;
    if (a.wide_stores)
      *reinterpret_cast<Pack<T, e>*>(to) = *reinterpret_cast<const Pack<T, e>*>(from);
    else
      *to = *from;
  }
}

template <typename P, typename S>
__global__ void __launch_bounds__(S::kThreadsOf, 512 / S::kThreadsOf)
    stem_conv_kernel(const __grid_constant__ StemForwardArgs a, const typename P::T* x,
                     const typename P::T* w, const typename P::T* bias, typename P::T* y) {
  using T = typename P::T;
  static_assert(S::kRows == kStemRows * kStemColumns);
  constexpr int e = kElements<T>;
  unsigned char* const shared = dynamic_shared<unsigned char>();
  Word* const words = reinterpret_cast<Word*>(shared + a.words_at);
  float* const biases = reinterpret_cast<float*>(shared + a.bias_at);
  T* const patch = reinterpret_cast<T*>(shared + a.patch_at);
  T* const staged = reinterpret_cast<T*>(shared + a.staged_at);
  const int t = static_cast<int>(threadIdx.x);

  // Neighbouring blocks have the same pixels and other channels.
  const int64_t worker = blockIdx.x / static_cast<unsigned>(a.column_tiles);
  const int k0 = static_cast<int>(blockIdx.x - worker * a.column_tiles) * S::kColumns;
  const int columns = a.of.k - k0 < S::kColumns ? a.of.k - k0 : S::kColumns;
  const int64_t from = worker * a.of.tiles / a.of.workers, to = (worker + 1) * a.of.tiles / a.of.workers;

  int* const w_at = reinterpret_cast<int*>(staged);  // until a tile is staged
  make_words<T, S::kThreadsOf>(a, words, w_at);
  for (int i = t; i < S::kColumns; i += S::kThreadsOf)
    biases[i] = bias && i < columns ? to_acc(bias[k0 + i]) : 0;
  for (int i = t; i < a.of.elements; i += S::kThreadsOf) patch[i] = from_acc<T>(0);  // what no tile writes
  __syncthreads();
  const int terms = a.steps * kStep<T>;
  const int64_t w_channel = int64_t{a.of.c} * a.of.kernel_h * a.of.kernel_w;
  for (int i = t; i < S::kColumns * terms; i += S::kThreadsOf) {
    const int column = a.by_terms(i), term = i - column * terms, place = w_at[term];
    const bool exists = place >= 0 && column < columns;
    reinterpret_cast<T*>(shared + column * a.weight_pitch)[term] =
        exists ? w[(k0 + column) * w_channel + place] : from_acc<T>(0);
  }

  StemPlace at(a.of, from);
  for (int64_t tile = from; tile < to; ++tile, at.advance(a.of)) {
    load_patch<T, S::kThreadsOf, 8>(patch, x, a.of, at);
    __syncthreads();  // the patch (and the weights) are there; the tile before has been written

    Sums<P, S, false> sums;  // of 196 terms at most
    PixelRows<T, S> rows(a.of, reinterpret_cast<const unsigned char*>(patch), sums.row0, sums.lane);
    for (int step = 0; step < a.steps; ++step) {
      rows.words = words + 16 * step;
      sums.add(step, rows, WeightColumns{shared + 64 * step, a.weight_pitch});
    }
    sums.for_each_pair([&](int row, int column, float first, float second) {
      float values[2] = {first + biases[column], second + biases[column + 1]};
      if (a.relu)  // a NaN stays
        for (float& v : values) v = v < 0 ? 0 : v;
      const Pack<T, 2> pair = {{from_acc<T>(values[0]), from_acc<T>(values[1])}};
      if (a.of.channels_last) {
        *reinterpret_cast<Pack<T, 2>*>(staged + row * (S::kColumns + e) + column) = pair;
      } else {
        staged[column * (S::kRows + e) + row] = pair.v[0];
        staged[(column + 1) * (S::kRows + e) + row] = pair.v[1];
      }
    });
    __syncthreads();  // the tile is staged; all have done with the patch
    store_tile<T, S>(staged, y, a, at, k0, columns);
  }
}

}  // namespace

void stem_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
               void* y, void* stream) {
  const StemForward of(p, plan.tile.n);
  const int64_t bytes = element_bytes(p.dtype), e = 16 / bytes;
  const int64_t column_tiles = ceil_div(p.k, plan.tile.n);
  StemForwardArgs a = {
      StemArgs(p, StemPatch(p, kStemRows, bytes == 2), kStemRows, plan.blocks / column_tiles),
      static_cast<int>(of.row_words),
      static_cast<int>(of.steps),
      static_cast<int>(of.weight_pitch),
      static_cast<int>(of.words_at),
      static_cast<int>(of.bias_at),
      static_cast<int>(of.patch_at),
      static_cast<int>(of.staged_at),
      static_cast<int>(column_tiles),
      p.weight_channels_last,
      p.relu,
      (p.channels_last ? p.k : p.out.w) % e == 0 && address(y) % 16 == 0,
      Divider<int32_t>(of.steps * 4 * e)};
  dispatch_products(p, [&](auto products) {
    using P = decltype(products);
    using T = typename P::T;
    const auto start = [&](auto shape) {
      using S = decltype(shape);
      launch("conv_stem", stem_conv_kernel<P, S>, static_cast<unsigned>(plan.blocks), S::kThreadsOf,
             static_cast<size_t>(of.shared), stream, a, static_cast<const T*>(x), static_cast<const T*>(w),
             static_cast<const T*>(bias), static_cast<T*>(y));
    };
    // A warp has 32 pixels, and 64 or 32 channels: 64 sums a thread, or 32; half of that where three products
    // want registers.
    if (plan.tile.n == 64)
      start(std::conditional_t<P::kThree, Shape<4, 2, 2, 4>, Shape<4, 1, 2, 8>>{});
    else
      start(std::conditional_t<P::kThree, Shape<4, 2, 2, 2>, Shape<4, 1, 2, 4>>{});
  });
}

}  // namespace cuda
}  // namespace fastops
