// The weight gradient of a depthwise convolution with a large kernel, on tensor cores:
//
//   dw[r][s] = Σ over n, y and the columns w of dy of x[y][w + s − padding] · dy[y + padding − r][w]
//
// For a row y of x that is a product of its Hankel matrix (s × w: an element depends on s + w) and of rows of
// dy (w × r): 32 × 32 sums for 31 × 31 taps, 2,048 operations an output for 1,922, at ten times the rate of
// the FP32 cores.
//
// A warp has the sums of one plane. Of the Hankel matrix of 64 elements of x, in fragments of 8 × 8, there
// are 7 different ones, a lane's pairs of neighbours at 7 distances: one load each, for 16 products of
// 16 × 8 × 16. Rows of dy are loaded by ldmatrix, at any row, 4 times for those products. So a row takes 23
// rows of 128 bytes of shared memory for 26 clocks of products. A block goes through its part of the images
// in pieces of 16 rows of x × 32 columns of dy; 63 KiB, so that three blocks are resident, and load while
// others multiply. The parts are added up by finish_weight_grad.
//
// Where dy ends, its zeros would meet elements of x that exist, of which an infinity or a NaN must not show.
// A piece that has one goes tap by tap.
#include "conv_families.h"
#include "conv_toeplitz.h"
#include "dispatch.h"
#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kRows = kToeplitzRows, kColumns = kToeplitzColumns, kPitch = kToeplitzGradPitch;

struct ToeplitzGradArgs {
  int64_t pieces, share;   // of all images; of a block
  int pieces_h, pieces_w;  // of an image
  int groups, channels;    // of planes
  int x_h, x_w, dy_h, dy_w;
  int taps_h, taps_w, pad_h, pad_w;
  bool channels_last;
};

// A lane's sums, of taps as mma has them: [s / 16][r / 8].
template <int wide>
using GradSums = float[wide][4][4];
// Calls f(sum, r, s) for each.
template <int wide, typename F>
__device__ __forceinline__ void for_each_tap(GradSums<wide>& sums, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < wide; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        f(sums[m][n][q], 8 * n + lane % 4 * 2 + q % 2, 16 * m + lane / 4 + q / 2 * 8);
}

// Adds `rows` rows of x. Row i of x and row j of dy, from the first of the piece, belong to the tap r =
// taps_h − 1 + i − j.
template <typename T, int wide>
__device__ __forceinline__ void add_rows(const ToeplitzGradArgs& a, const T* x, const T* dy, int rows,
                                         int columns, GradSums<wide>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Lane 8 · j + i brings row i of matrix j: taps 8 · (j / 2) + i of 16, and columns 8 · (j % 2) of 16. Taps
  // beyond the last are its copies, in sums that nobody reads.
  int row_of[2];
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    const int r = 16 * pair + lane / 16 * 8 + lane % 8, last = a.taps_h - 1;
    row_of[pair] = (last - (r < last ? r : last)) * kPitch + lane / 8 % 2 * 8;
  }
  for (int i = 0; i < rows; ++i, x += kDoubled, dy += kPitch) {
    uint32_t hankel[2 * wide + 3];
#pragma unroll
    for (int d = 0; d < 2 * wide + 3; ++d) hankel[d] = pair_at(x, 8 * d + lane / 4 + lane % 4 * 2);
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      if (16 * k >= columns) continue;
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        if (16 * pair >= a.taps_h) continue;
        uint32_t of_dy[4];
        ldmatrix_x4(of_dy, dy + row_of[pair] + 16 * k);
#pragma unroll
        for (int m = 0; m < wide; ++m) {
          const int d = 2 * m + 2 * k;
          const uint32_t of_x[4] = {hankel[d], hankel[d + 1], hankel[d + 1], hankel[d + 2]};
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t fragment[2] = {of_dy[2 * half], of_dy[2 * half + 1]};
            mma<T>(sums[m][2 * pair + half], of_x, fragment);
          }
        }
      }
    }
  }
}

// The same tap by tap, only those that there are. Loops stay loops: unrolled for each of 32 sums they would
// take half a minute to compile.
template <typename T, int wide>
__device__ void add_taps(const ToeplitzGradArgs& a, const Window<T>& from_x, const Window<T>& from_dy,
                         const T* x, const T* dy, GradSums<wide>& sums) {
  for_each_tap<wide>(sums, [&](float& sum, int r, int s) {
    if (r >= a.taps_h || s >= a.taps_w) return;
#pragma unroll 1
    for (int i = 0; i < kRows; ++i)
#pragma unroll 1
      for (int w = 0; w < kColumns; ++w) {
        const int j = a.taps_h - 1 + i - r;
        if (from_x.has(i, w + s) && from_dy.has(j, w))
          sum = multiply_add(to_acc(x[i * kDoubled + w + s]), to_acc(dy[j * kPitch + w]), sum);
      }
  });
}

template <typename T, int wide>
__global__ void __launch_bounds__(kToeplitzThreads, 3)
    toeplitz_weight_grad_kernel(const __grid_constant__ ToeplitzGradArgs a, const T* dy, const T* x,
                                float* partials) {
  const int warp = static_cast<int>(threadIdx.x) / 32, dy_rows = kRows + a.taps_h - 1;
  T* const all_x = dynamic_shared<T>();
  T* const all_dy = all_x + kPlanes * kRows * kDoubled;
  const T* const my_x = all_x + warp * kRows * kDoubled;
  const T* const my_dy = all_dy + warp * dy_rows * kPitch;
  // Neighbouring blocks have neighbouring channels of the same pixels.
  const int64_t split = blockIdx.x / a.groups;
  const int channel = static_cast<int>(blockIdx.x - split * a.groups) * kPlanes;
  const int64_t first = split * a.share, end = first + a.share < a.pieces ? first + a.share : a.pieces;
  GradSums<wide> sums = {};
  for (int64_t piece = first; piece < end; ++piece) {
    const int64_t row = piece / a.pieces_w, n = row / a.pieces_h;
    const int y = static_cast<int>(row - n * a.pieces_h) * kRows;
    const int w = static_cast<int>(piece - row * a.pieces_w) * kColumns;
    const Window<T> of_x = {x, a.channels, a.x_h, a.x_w, a.channels_last, n, channel, y, w - a.pad_w};
    const Window<T> of_dy = {
        dy, a.channels, a.dy_h, a.dy_w, a.channels_last, n, channel, y + a.pad_h - (a.taps_h - 1), w};
    bool finite = load_window<toeplitz_grad_columns(wide)>(of_x, kRows, [&](int u, int i, int column, T v) {
      T* const line = all_x + (u * kRows + i) * kDoubled;
      line[column] = v;
      if (column + 1 < kToeplitzTaps) line[second_copy(column + 1)] = v;
    });
    finite &= load_window<kColumns>(of_dy, dy_rows, [&](int u, int j, int column, T v) {
      all_dy[(u * dy_rows + j) * kPitch + column] = v;
    });
    if (__syncthreads_or(!finite)) {
      add_taps<T, wide>(a, of_x, of_dy, my_x, my_dy, sums);
    } else {
      const int rows = a.x_h - y < kRows ? a.x_h - y : kRows;
      add_rows<T, wide>(a, my_x, my_dy, rows, a.dy_w - w, sums);
    }
    __syncthreads();  // before the next piece overwrites this one
  }
  if (channel + warp >= a.channels) return;
  float* const part = partials + (split * a.channels + channel + warp) * a.taps_h * a.taps_w;
  for_each_tap<wide>(sums, [&](float sum, int r, int s) {
    if (r < a.taps_h && s < a.taps_w) part[r * a.taps_w + s] = sum;
  });
}

template <typename T>
void run(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x, void* partials,
         void* stream) {
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  ToeplitzGradArgs a = {};
  a.pieces = toeplitz_pieces(p), a.share = ceil_div(a.pieces, plan.splits);
  a.pieces_h = narrow(ceil_div(p.in.h, kRows)), a.pieces_w = narrow(ceil_div(p.out.w, kColumns));
  a.groups = narrow(ceil_div(p.c, kPlanes)), a.channels = narrow(p.c);
  a.x_h = narrow(p.in.h), a.x_w = narrow(p.in.w), a.dy_h = narrow(p.out.h), a.dy_w = narrow(p.out.w);
  a.taps_h = narrow(p.kernel.h), a.taps_w = narrow(p.kernel.w);
  a.pad_h = narrow(p.pad.h), a.pad_w = narrow(p.pad.w);
  a.channels_last = p.channels_last;
  const auto start = [&](auto wide) {
    launch("conv_weight_grad", toeplitz_weight_grad_kernel<T, decltype(wide)::value>,
           static_cast<unsigned>(plan.blocks), kToeplitzThreads, static_cast<size_t>(toeplitz_grad_shared(p)),
           stream, a, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<float*>(partials));
  };
  if (p.kernel.w <= 16)
    start(Width<1>());
  else
    start(Width<2>());
}

}  // namespace

void toeplitz_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                          void* partials, void* stream) {
  // Vectors of 8 channels at other addresses: the ordinary kernels.
  if (p.channels_last && (address(x) | address(dy)) % 16 != 0)
    return depthwise_weight_grad(p, plan, dy, x, partials, false, stream);
  if (p.dtype == DType::kF16)
    run<__half>(p, plan, dy, x, partials, stream);
  else
    run<__nv_bfloat16>(p, plan, dy, x, partials, stream);
}

}  // namespace cuda
}  // namespace fastops
