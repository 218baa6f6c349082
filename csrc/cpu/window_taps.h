// The taps of pooling windows inside a tensor, tables of them, and partial results combined in pairs: what
// the reductions over windows and max pooling have in common.
#pragma once

#include "../pool.h"
#include "rows.h"

namespace fastops {
namespace cpu {
namespace {

// The elements of one window that lie inside the input.
template <typename T>
struct Taps {
  const T* first;
  int64_t depth, height, width;                 // how many
  int64_t depth_step, height_step, width_step;  // elements from one to the next
};

// The taps of window o along one axis: the position of the first inside the input, and how many are.
struct AxisTaps {
  int64_t first;
  int64_t count;
};
inline AxisTaps axis_taps(const PoolAxis& a, int64_t o) {
  const int64_t start = window_start(a, o);
  if (!a.adaptive && start >= 0 && start + (a.kernel - 1) * a.dilation < a.in) return {start, a.kernel};
  const Range taps = window_taps(a, o);
  return {start + taps.begin * a.dilation, imax(taps.end - taps.begin, 0)};
}

// The rows of the windows (od, oh, ·) in a plane of `channels` interleaved channels, from column 0;
// the width is left open.
template <typename T>
Taps<T> rows_of(const PoolParams& p, const T* plane, int64_t channels, int64_t od, int64_t oh) {
  const AxisTaps d = axis_taps(axis_d(p), od), h = axis_taps(axis_h(p), oh);
  const int64_t row = p.in.w * channels;
  return {plane + (d.first * p.in.h + h.first) * row,
          d.count,
          h.count,
          0,
          p.dilation.d * p.in.h * row,  // dilation is 1 in adaptive windows
          p.dilation.h * row,
          p.dilation.w * channels};
}
template <typename T>
Taps<T> window_of(Taps<T> rows, const AxisTaps& columns, int64_t channels) {
  rows.first += columns.first * channels;
  rows.width = columns.count;
  return rows;
}

// Something for each column of a row, worked out once for many rows. Long rows take turns.
constexpr int64_t kTableColumns = 256;
template <typename Entry>
class ColumnTable {
 public:
  // Makes entry(column) ready for the columns of `column`'s tile; returns whether that took work.
  template <typename F>
  inline bool prepare(int64_t column, int64_t columns, F make) {
    if (column >= begin_ && column < end_) return false;
    begin_ = column / kTableColumns * kTableColumns;
    end_ = imin(begin_ + kTableColumns, columns);
    for (int64_t i = begin_; i < end_; ++i) entries_[i - begin_] = make(i);
    return true;
  }
  const Entry& operator[](int64_t column) const { return entries_[column - begin_]; }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

 private:
  int64_t begin_ = 0, end_ = 0;
  Entry entries_[kTableColumns];
};

// Windows of more taps than that are reduced in runs, combined in pairs, pairs of pairs, and so on: so the
// rounding errors of a sum grow with the logarithm of its length, not with the length.
constexpr int64_t kPlainTaps = 49;
constexpr int64_t kRun = 32;

// Partial results, of `vectors` values each, combined like that as they come.
template <typename Op, typename V, int vectors>
class Pairs {
 public:
  inline void add(V (&value)[vectors]) {
    int level = 0;
    for (uint64_t pairs = count_++; pairs & 1; pairs >>= 1, ++level)
      for (int u = 0; u < vectors; ++u) value[u] = Op::combine(parts_[level][u], value[u]);
    for (int u = 0; u < vectors; ++u) parts_[level][u] = value[u];
  }
  // Of at least one.
  inline void result(V (&value)[vectors]) const {
    bool first = true;
    for (int level = 0; count_ >> level; ++level) {
      if (!(count_ >> level & 1)) continue;
      for (int u = 0; u < vectors; ++u)
        value[u] = first ? parts_[level][u] : Op::combine(parts_[level][u], value[u]);
      first = false;
    }
  }
  bool empty() const { return count_ == 0; }

 private:
  uint64_t count_ = 0;
  V parts_[48][vectors];  // as many as no tensor has bits in its number of elements
};

}  // namespace
}  // namespace cpu
}  // namespace fastops
