// Loops over (n, c, spatial) tensors whose coefficients and sums belong to channels, for both layouts:
// contiguous tensors in pieces of planes with one channel each, channels_last in rows of channels. A
// kernel says what happens to one vector; these say which vectors there are.
#pragma once

#include <utility>

#include "../batch_norm.h"
#include "parallel.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

// ---- vectors of a run of elements --------------------------------------------------------------

// Which lanes of a vector are meant. load and store move elements; keep clears the lanes that a sum must
// not count.
struct Whole {
  template <typename T>
  auto load(const T* p) const {
    return cpu::load(p);
  }
  template <typename T>
  void store(T* p, Vec<Acc<T>> v) const {
    cpu::store(p, v);
  }
  template <typename V>
  V keep(V v) const {
    return v;
  }
};
// The first `count` lanes.
struct First {
  int64_t count;
  template <typename T>
  auto load(const T* p) const {
    return load_first(p, count);
  }
  template <typename T>
  void store(T* p, Vec<Acc<T>> v) const {
    store_first(p, v, count);
  }
  template <typename V>
  V keep(V v) const {
    for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(v[0])); ++i) v[i] = i < count ? v[i] : 0;
    return v;
  }
};
// All lanes hold elements, but the first `skip` were already visited. Storing them again is harmless.
struct Overlap : Whole {
  int64_t skip;
  explicit Overlap(int64_t n) : skip(n) {}
  template <typename V>
  V keep(V v) const {
    using A = std::decay_t<decltype(v[0])>;
    return lane_numbers<A>() >= static_cast<LaneNumber<A>>(skip) ? v : V{};
  }
};

template <typename A, typename F, int... way>
inline void call_ways(int64_t j, F& f, std::integer_sequence<int, way...>) {
  (f(j + way * kLanes<A>, std::integral_constant<int, way>{}, Whole{}), ...);
}

// f(j, way, part) for the vectors of [0, count), where part says which lanes are meant. `way` is a
// constant < ways: sums with one accumulator for each way do not wait for each other.
template <int ways, typename A, typename F>
inline void for_vectors(int64_t count, F f) {
  constexpr int64_t lanes = kLanes<A>;
  using First_ = std::integral_constant<int, 0>;
  int64_t j = 0;
  for (; j + ways * lanes <= count; j += ways * lanes)
    call_ways<A>(j, f, std::make_integer_sequence<int, ways>{});
  for (; j + lanes <= count; j += lanes) f(j, First_{}, Whole{});
  if (j == count) return;
  if (count >= lanes)
    f(count - lanes, First_{}, Overlap(lanes - (count - j)));
  else
    f(0, First_{}, First{count});
}

// f(j, part) for the vectors of a row, none of them overlapping.
template <typename A, typename F>
inline void for_row(int64_t count, F f) {
  int64_t j = 0;
  for (; j + kLanes<A> <= count; j += kLanes<A>) f(j, Whole{});
  if (j < count) f(j, First{count - j});
}

// `sums` sums in `ways` vectors each.
template <typename A, int sums, int ways>
struct Sums {
  Vec<A> v[ways][sums] = {};
  double total(int k) const {
    Vec<A> all = v[0][k];
    for (int way = 1; way < ways; ++way) all += v[way][k];
    return sum_of_lanes(all);
  }
};

// ---- blocks ------------------------------------------------------------------------------------

// One block of the contiguous layout: `planes` runs of `count` elements, `stride` apart.
struct PlaneBlock {
  int64_t offset;
  int64_t planes;
  int64_t stride;
  int64_t count;
};

inline PlaneBlock plane_block(const BatchNormParams& p, const BatchNormSplit& s, int64_t c, int64_t block) {
  const int64_t plane = volume(p.in), stride = p.c * plane;
  const int64_t n = s.pieces > 1 ? block / s.pieces : block * s.planes;
  const int64_t begin = s.pieces > 1 ? block % s.pieces * s.piece : 0;
  return {n * stride + c * plane + begin, imin(s.planes, p.n - n), stride, imin(s.piece, plane - begin)};
}

// One block of rows in channels_last: rows [begin, end), of which the last `short_rows` (0 or 1) has only
// `rest` entries.
struct RowBlock {
  int64_t begin;
  int64_t end;
  int64_t short_rows;
  int64_t rest;
  // Elements that entry j of the block sums over.
  int64_t count(int64_t j) const { return end - begin - (j < rest ? 0 : short_rows); }
};

inline RowBlock row_block(const BatchNormParams& p, const BatchNormSplit& s, int64_t block) {
  const int64_t begin = block * s.rows, end = imin(begin + s.rows, s.all_rows);
  const int64_t rest = p.n * volume(p.in) * p.c - (s.all_rows - 1) * s.width;
  const bool is_short = end == s.all_rows && rest < s.width;
  return {begin, end, is_short ? 1 : 0, is_short ? rest : s.width};
}

// f(offset, j, part) for the vectors of a block of rows, one row after the other: that is the order in which
// memory gives them fastest. (Several rows side by side, with their sums in registers, took 10 % less time of
// what is in the caches, and up to half as much again of what is not.)
template <typename A, typename F>
inline void for_rows(const BatchNormSplit& s, const RowBlock& b, F f) {
  for (int64_t row = b.begin; row < b.end; ++row)
    for_row<A>(row < b.end - b.short_rows ? s.width : b.rest,
               [&](int64_t j, auto part) { f(row * s.width + j, j, part); });
}

// ---- sums and maps -----------------------------------------------------------------------------

// Sums over each channel: term(offset, coefficients, part, v) adds its terms of one vector to v[0 .. sums);
// coefficients[k] is its part of table k. totals (sums tables of fp64) gets the result; partials is scratch.
template <typename T, int sums, int count, typename Term>
void sum_channels(const BatchNormParams& p, const BatchNormSplit& s, const Acc<T>* tables, double* totals,
                  void* partials, int threads, Term term) {
  using A = Acc<T>;
  if (!p.channels_last) {
    constexpr int ways = sums > 2 ? 2 : 4;
    double* const partial = static_cast<double*>(partials);  // (c, blocks, sums)
    parallel_for(threads, p.c * s.blocks, s.planes * s.piece, [&](int64_t task, int) {
      const int64_t c = task / s.blocks;
      const PlaneBlock b = plane_block(p, s, c, task % s.blocks);
      Vec<A> coefficients[count];
      for (int k = 0; k < count; ++k) coefficients[k] = broadcast(tables[k * s.stride + c]);
      // A lane adds up at most 64 terms before they go to fp64: short vectors would have longer sums.
      constexpr int64_t most = 64 * ways * kLanes<A>;
      double total[sums] = {};
      Sums<A, sums, ways> sum;
      int64_t summed = 0;
      const auto flush = [&] {
        for (int k = 0; k < sums; ++k) total[k] += sum.total(k);
      };
      for (int64_t i = 0; i < b.planes; ++i)
        for (int64_t from = 0; from < b.count; from += most) {
          const int64_t length = imin(most, b.count - from), offset = b.offset + i * b.stride + from;
          if (summed + length > most) {
            flush();
            sum = {};
            summed = 0;
          }
          for_vectors<ways, A>(length, [&](int64_t j, auto way, auto part) {
            term(offset + j, coefficients, part, sum.v[way.value]);
          });
          summed += length;
        }
      flush();
      for (int k = 0; k < sums; ++k) partial[task * sums + k] = total[k];
    });
    for (int64_t c = 0; c < p.c; ++c)
      for (int k = 0; k < sums; ++k) {
        double total = 0;
        for (int64_t b = 0; b < s.blocks; ++b) total += partial[(c * s.blocks + b) * sums + k];
        totals[k * s.stride + c] = total;
      }
    return;
  }
  A* const partial = static_cast<A*>(partials);  // (blocks, sums, stride)
  parallel_for(threads, s.blocks, s.rows * s.width, [&](int64_t task, int) {
    A* const acc = partial + task * sums * s.stride;
    for (int64_t j = 0; j < sums * s.stride; ++j) acc[j] = 0;
    for_rows<A>(s, row_block(p, s, task), [&](int64_t offset, int64_t j, auto part) {
      Vec<A> coefficients[count], v[sums];
      for (int k = 0; k < count; ++k) coefficients[k] = load(tables + k * s.stride + j);
      for (int k = 0; k < sums; ++k) v[k] = load(acc + k * s.stride + j);
      term(offset, coefficients, part, v);
      for (int k = 0; k < sums; ++k) store(acc + k * s.stride + j, v[k]);
    });
  });
  constexpr int64_t chunk = 512;
  parallel_for(threads, ceil_div(s.width, chunk), chunk * s.blocks, [&](int64_t task, int) {
    const int64_t begin = task * chunk, end = imin(begin + chunk, s.width);
    for (int k = 0; k < sums; ++k) {
      double* const total = totals + k * s.stride;
      for (int64_t j = begin; j < end; ++j) total[j] = 0;
      for (int64_t b = 0; b < s.blocks; ++b) {
        const A* const acc = partial + (b * sums + k) * s.stride;
        for (int64_t j = begin; j < end; ++j) total[j] += static_cast<double>(acc[j]);
      }
    }
  });
  for (int k = 0; k < sums; ++k)
    for (int64_t j = p.c; j < s.width; ++j) totals[k * s.stride + j % p.c] += totals[k * s.stride + j];
}

// map(offset, coefficients, part) for every vector of the tensor; coefficients[k] is its part of table k.
template <typename T, int count, typename Map>
void map_channels(const BatchNormParams& p, const BatchNormSplit& s, const Acc<T>* tables, int threads,
                  Map map) {
  using A = Acc<T>;
  if (!p.channels_last) {
    const int64_t plane = volume(p.in), planes = p.n * p.c;
    const int64_t tasks = s.pieces > 1 ? planes * s.pieces : ceil_div(planes, s.planes);
    parallel_for(threads, tasks, s.planes * s.piece, [&](int64_t task, int) {
      const int64_t first = s.pieces > 1 ? task / s.pieces : task * s.planes;
      const int64_t begin = s.pieces > 1 ? task % s.pieces * s.piece : 0;
      int64_t c = first % p.c;
      for (int64_t i = first; i < imin(first + s.planes, planes); ++i) {
        Vec<A> v[count];
        for (int k = 0; k < count; ++k) v[k] = broadcast(tables[k * s.stride + c]);
        for_vectors<1, A>(imin(s.piece, plane - begin),
                          [&](int64_t j, auto, auto part) { map(i * plane + begin + j, v, part); });
        if (++c == p.c) c = 0;
      }
    });
    return;
  }
  parallel_for(threads, s.blocks, s.rows * s.width, [&](int64_t task, int) {
    for_rows<A>(s, row_block(p, s, task), [&](int64_t offset, int64_t j, auto part) {
      Vec<A> v[count];
      for (int k = 0; k < count; ++k) v[k] = load(tables + k * s.stride + j);
      map(offset, v, part);
    });
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
