// NCHW convolutions by way of channels_last: where a convolution multiplies much for each element that it
// moves, turning its operands over costs less than what channels_last saves (its source is gathered by
// pointers, its tiles reach over images, Winograd has whole vectors of channels however small the image).
#pragma once

#include "parallel.h"
#include "tap_conv.h"
#include "turn.h"

namespace fastops {
namespace cpu {
namespace {

struct Inside {
  ConvParams p;            // of the images that are turned over at once
  int64_t source, result;  // their elements
};

// Turning an element over takes about a cycle from the caches, in which a core multiplies 16 or 32 times.
// Of few positions the weights are most of what is moved, which the forward of NCHW reads as they lie.
inline bool pays_inside(const TapConv& t) {
  if (t.p->channels_last || t.inner < 16 || t.outer < 16) return false;
  if (!t.input_grad && t.p->n * volume(t.result) < 128) return false;
  const double moved = static_cast<double>(t.inner) * static_cast<double>(volume(t.source)) +
                       static_cast<double>(t.outer) * static_cast<double>(volume(t.result));
  const double places = static_cast<double>(volume(t.input_grad ? t.source : t.result));
  const double products = static_cast<double>(t.inner * t.outer * volume(t.p->kernel)) * places;
  return products >= 128.0 * moved;
}

// Depthwise: a row shorter than one and a half vectors leaves lanes empty there, and of a large kernel each
// load from a row of NCHW is one across cache lines. Groups of a few channels fill vectors in channels_last
// only.
template <typename A>
bool pays_inside_depthwise(const TapConv& t) {
  if (t.inner * t.outer > 1) return !t.p->channels_last;
  return !t.p->channels_last && t.inner == 1 && t.outer == 1 && t.p->groups >= kLanes<A> &&
         (2 * t.result.w < 3 * kLanes<A> || volume(t.p->kernel) >= 25);
}

inline Inside channels_last_inside(const TapConv& t) {
  constexpr int64_t kElements = int64_t{1} << 22;  // 16 MB of fp32: in the last-level cache, or nearly
  const int64_t source = t.p->groups * t.inner * volume(t.source),
                result = t.p->groups * t.outer * volume(t.result);
  Inside inside = {*t.p, 0, 0};
  inside.p.channels_last = true;
  inside.p.n = imin(t.p->n, imax(1, kElements / imax(1, source + result)));
  inside.source = round_up(inside.p.n * source, 64), inside.result = round_up(inside.p.n * result, 64);
  return inside;
}

// In elements of the accumulation type.
template <typename T>
int64_t inside_elements(const Inside& inside) {
  return (inside.source + inside.result) / static_cast<int64_t>(sizeof(Acc<T>) / sizeof(T));
}

// Positions of one task; of each channel two cache lines of fp32 or more.
constexpr int64_t kTurned = 32;

template <typename T>
void to_channels_last(int64_t n, int64_t channels, int64_t positions, const T* from, T* to, int threads) {
  const int64_t blocks = ceil_div(positions, kTurned);
  parallel_for(threads, n * blocks, kTurned * channels / 4, [&](int64_t task, int) {
    const int64_t image = task / blocks * channels * positions;
    const int64_t begin = task % blocks * kTurned, count = imin(kTurned, positions - begin);
    turn_over(from + image + begin, positions, channels, count, to + image + begin * channels, channels);
  });
}

template <typename T>
void to_contiguous(int64_t n, int64_t channels, int64_t positions, const T* from, T* to, int threads) {
  const int64_t blocks = ceil_div(positions, kTurned);
  parallel_for(threads, n * blocks, kTurned * channels / 4, [&](int64_t task, int) {
    const int64_t image = task / blocks * channels * positions;
    const int64_t begin = task % blocks * kTurned, count = imin(kTurned, positions - begin);
    turn_over(from + image + begin * channels, channels, count, channels, to + image + begin, positions);
  });
}

// call(convolution, source, result, memory), here or in channels_last, some images at a time.
template <typename T, typename Call>
void run_as_it_is(const TapConv& t, const T* source, T* result, Acc<T>* memory, int, const Call& call) {
  call(t, source, result, memory);
}
template <typename T, typename Call>
void run_inside(const TapConv& t, const T* source, T* result, Acc<T>* memory, int threads, const Call& call) {
  const Inside inside = channels_last_inside(t);
  T* rows = reinterpret_cast<T*>(memory);
  T* result_rows = rows + inside.source;
  const int64_t from = t.p->groups * t.inner, to = t.p->groups * t.outer;
  for (int64_t n = 0; n < t.p->n; n += inside.p.n) {
    ConvParams p = inside.p;
    p.n = imin(p.n, t.p->n - n);
    to_channels_last(p.n, from, volume(t.source), source + n * from * volume(t.source), rows, threads);
    call(tap_conv(p, t.input_grad), rows, result_rows, memory + inside_elements<T>(inside));
    to_contiguous(p.n, to, volume(t.result), result_rows, result + n * to * volume(t.result), threads);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
