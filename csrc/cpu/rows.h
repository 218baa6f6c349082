// Plain (not adaptive) windows along a contiguous axis, vectorised for any kernel, stride and dilation.
//
// A row is held as `stride` phases: phase r has the columns r, r + stride, r + 2·stride, … Tap k of
// neighbouring windows then reads neighbouring elements of one phase, so every tap is a contiguous
// vector, forward and adjoint alike. Long rows are cut into tiles whose phases fit into L1.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int64_t kRowElements = 4096;  // of a row buffer
constexpr int64_t kMaxTaps = 256;       // along W
// What vector loops may read and write past the last element.
constexpr int64_t kSlack = 2 * kVectorBytes / 4;

template <typename E>
struct RowBuffer {
  E data[kRowElements + kSlack];
};

// The taps along W, and the sizes of a tile.
struct Columns {
  int64_t stride;
  int64_t length;  // elements of one phase
  int64_t reach;   // slots between the first and the last tap of a window
  int64_t tile;    // windows of a tile; < 1: the windows are too large for row buffers
  int64_t taps;
  int32_t offset[kMaxTaps];  // of tap k: its phase · length + its slot

  explicit Columns(const PoolAxis& a) : stride(a.stride), taps(a.kernel) {
    length = kRowElements / stride;
    reach = a.adaptive ? 0 : (a.kernel - 1) * a.dilation / stride;
    tile = a.adaptive || taps > kMaxTaps ? 0 : length - reach - kSlack;
    if (tile < 1) return;
    for (int64_t k = 0; k < taps; ++k)
      offset[k] = static_cast<int32_t>(k * a.dilation % stride * length + k * a.dilation / stride);
  }
};

// Splits a row of `count` slots per phase (count · stride elements, and slack) into its phases.
template <typename E, typename V>
inline void split_phases(const Columns& columns, const E* row, int64_t count, E* phases) {
  constexpr int64_t lanes = sizeof(V) / sizeof(E);
  if (columns.stride == 2) {
    for (int64_t i = 0; i < count; i += lanes) {
      const Pair<V> v = deinterleave(load_bits<V>(row + 2 * i), load_bits<V>(row + 2 * i + lanes));
      std::memcpy(phases + i, &v.first, sizeof(V));
      std::memcpy(phases + columns.length + i, &v.second, sizeof(V));
    }
    return;
  }
  for (int64_t r = 0; r < columns.stride; ++r)
    for (int64_t i = 0; i < count; ++i) phases[r * columns.length + i] = row[i * columns.stride + r];
}

// The inverse of split_phases.
template <typename E, typename V>
inline void join_phases(const Columns& columns, const E* phases, int64_t count, E* row) {
  constexpr int64_t lanes = sizeof(V) / sizeof(E);
  if (columns.stride == 2) {
    for (int64_t i = 0; i < count; i += lanes) {
      const Pair<V> v = interleave(load_bits<V>(phases + i), load_bits<V>(phases + columns.length + i));
      std::memcpy(row + 2 * i, &v.first, sizeof(V));
      std::memcpy(row + 2 * i + lanes, &v.second, sizeof(V));
    }
    return;
  }
  for (int64_t r = 0; r < columns.stride; ++r)
    for (int64_t i = 0; i < count; ++i) row[i * columns.stride + r] = phases[r * columns.length + i];
}

// f(j, load, count) over j = begin, begin + lanes, … until end. A remainder is a whole vector that
// overlaps the previous one, so f must not mind doing an element twice; only a range shorter than a
// vector is loaded and stored in part (count < lanes).
template <typename T, typename F>
inline void for_vectors(int64_t begin, int64_t end, F f) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  if (end - begin < lanes) {
    if (end > begin) f(begin, end - begin);
    return;
  }
  int64_t j = begin;
  for (; j + lanes <= end; j += lanes) f(j, lanes);
  if (j < end) f(end - lanes, lanes);
}

template <typename T>
inline Vec<Acc<T>> load_some(const T* p, int64_t count) {
  return count == kLanes<Acc<T>> ? load(p) : load_first(p, count);
}
template <typename T>
inline void store_some(T* p, Vec<Acc<T>> v, int64_t count) {
  if (count == kLanes<Acc<T>>)
    store(p, v);
  else
    store_first(p, v, count);
}

// A whole vector where the tensor that p points into reaches far enough, else what is left of it. For
// channels: lanes past a pixel's last channel are the next pixel's, are computed in vain, and are
// overwritten when the next pixel is stored; `end` is where the elements of the caller's task end.
template <typename T>
inline Vec<Acc<T>> load_before(const T* p, const T* end) {
  return __builtin_expect(p + kLanes<Acc<T>> <= end, 1) ? load(p) : load_first(p, end - p);
}
template <typename T>
inline void store_before(T* p, Vec<Acc<T>> v, const T* end) {
  if (__builtin_expect(p + kLanes<Acc<T>> <= end, 1))
    store(p, v);
  else
    store_first(p, v, end - p);
}

// Rows are dealt out in blocks of about this many elements: small planes whole, large ones in parts.
constexpr int64_t kBlockElements = 8192;
inline int64_t rows_per_task(int64_t rows, int64_t width) {
  return imax(1, imin(rows, kBlockElements / imax(width, 1)));
}
// The same for rows of a channels_last image, each of which has a table of its columns to make first:
// not more tasks than keep the threads busy.
inline int64_t pixel_rows_per_task(int64_t images, int64_t rows, int64_t width, int threads) {
  return imax(rows_per_task(rows, width), imin(rows, ceil_div(images * rows, int64_t{4} * threads)));
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
