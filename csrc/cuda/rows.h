// Pooling of contiguous planes by the usual windows, a run of neighbours in a row per thread.
//
// One element per thread costs more instructions for finding its place than for pooling: some hundred of
// them for four loads. A run of 16 bytes shares that work, and is read and written by 16-byte accesses:
// at stride 2 the inputs of a run are two such runs, and one element before or after, which a
// neighbouring thread has brought into the cache.
#pragma once

#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// What a window is along a row, known to the compiler.
template <int kernel_, int stride_, int pad_>
struct RowWindow {
  static constexpr int kernel = kernel_, stride = stride_, pad = pad_;
};

constexpr int floor_over(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The outputs that inputs [0, run) of a row are in, seen from output 0 / stride.
template <typename Window, int run>
struct OutputsOf {
  static constexpr int first(int input) {
    return floor_over(input + Window::pad - Window::kernel, Window::stride) + 1;
  }
  static constexpr int last(int input) { return floor_over(input + Window::pad, Window::stride); }
  static constexpr int begin = first(0), end = last(run - 1) + 1;
};

// Elements [begin, end) of a row, counted from a place in it that is a multiple of `run`, in registers: whole
// runs by one access each. begin ≤ 0 < end.
template <typename T, int begin, int end, int run>
class RowPart {
 public:
  // Elements outside of [0, length), a multiple of `run`, are `outside`.
  __device__ RowPart(const T* row, int place, int length, T outside) {
    constexpr int whole = end / run * run;
#pragma unroll
    for (int i = begin; i < 0; ++i) v_[i - begin] = place + i >= 0 ? row[place + i] : outside;
#pragma unroll
    for (int i = 0; i < whole; i += run) {
      Pack<T, run> pack;
#pragma unroll
      for (int u = 0; u < run; ++u) pack.v[u] = outside;
      if (place + i < length) pack = *reinterpret_cast<const Pack<T, run>*>(row + place + i);
#pragma unroll
      for (int u = 0; u < run; ++u) v_[i + u - begin] = pack.v[u];
    }
#pragma unroll
    for (int i = whole; i < end; ++i) v_[i - begin] = place + i < length ? row[place + i] : outside;
  }
  __device__ T operator[](int i) const { return v_[i - begin]; }

 private:
  T v_[end - begin];
};

// Runs of `run` elements in rows, of outputs or of inputs.
template <int run>
struct Rows {
  Windows<int32_t> w;
  int32_t out_runs, in_runs;
  Divider<int32_t> by_out_runs, by_in_runs;

  explicit Rows(const PoolParams& p)
      : w(p, 1),
        out_runs(static_cast<int32_t>(p.out.w / run)),
        in_runs(static_cast<int32_t>(p.in.w / run)),
        by_out_runs(p.out.w / run),
        by_in_runs(p.in.w / run) {}

  // The first element of a run.
  FASTOPS_HD Place<int32_t> output(int32_t index) const {
    const int32_t row = by_out_runs(index), slice = w.h.by_out(row), plane = w.d.by_out(slice);
    return {plane, slice - plane * w.d.out, row - slice * w.h.out, (index - row * out_runs) * run, 0};
  }
  FASTOPS_HD Place<int32_t> input(int32_t index) const {
    const int32_t row = by_in_runs(index), slice = w.h.by_in(row), plane = w.d.by_in(slice);
    return {plane, slice - plane * w.d.in, row - slice * w.h.in, (index - row * in_runs) * run, 0};
  }
};

// f(window, rows) where the tensors are contiguous planes whose rows are whole runs of 16 bytes of T, and
// the window is one of those that networks use: 2 stride 2, 3 stride 2, 3 stride 1. Returns whether.
template <typename T, typename F>
bool dispatch_rows(const PoolParams& p, uintptr_t addresses, F f) {
  constexpr int run = 16 / sizeof(T);
  if (channels_of(p) > 1 || p.adaptive || p.dilation.w != 1 || !fits_32_bits(p)) return false;
  if (p.in.w % run != 0 || p.out.w % run != 0 || addresses % 16 != 0) return false;
  const auto is = [&](auto window) {
    return p.kernel.w == window.kernel && p.stride.w == window.stride && p.pad.w == window.pad;
  };
  const auto pooled = [&](auto window) {
    if (is(window)) f(window, Rows<run>(p));
    return is(window);
  };
  return pooled(RowWindow<2, 2, 0>{}) || pooled(RowWindow<3, 2, 1>{}) || pooled(RowWindow<3, 1, 1>{});
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
