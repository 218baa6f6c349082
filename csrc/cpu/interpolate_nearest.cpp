// Nearest interpolation on the CPU: rows of elements copied by an index table, and the adjoint, which
// sums for each input the run of outputs that copy it.
//
// A row is a sequence of pixels: one element in NCHW, C elements in channels_last. A task is a strip
// of rows of one plane; it walks the columns in blocks, so that a block's table serves the whole strip.
#include "../interpolate.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int64_t kStrip = 32;     // rows per task
constexpr int64_t kColumns = 512;  // columns per table

// ---- forward -----------------------------------------------------------------------------------

// Source columns of outputs [begin, begin + count), relative to the first one's.
struct ColumnTable {
  int64_t base;
  int64_t count;
  bool doubling;  // source[o] = o / 2: the common ×2
  bool identity;  // source[o] = o
  int32_t source[kColumns];

  ColumnTable(const SampleAxis& a, int64_t begin, int64_t columns)
      : base(nearest_index(a, begin)), count(columns), doubling(true), identity(true) {
    for (int64_t o = 0; o < count; ++o) {
      source[o] = static_cast<int32_t>(nearest_index(a, begin + o) - base);
      doubling = doubling && source[o] == o / 2;
      identity = identity && source[o] == o;
    }
  }
};

// A number of as many bytes as a pixel has. Pixels lie at multiples of an element's size, not of their own.
template <typename E>
struct Loose {
  typedef E type __attribute__((aligned(1), may_alias));
};
template <int bytes>
struct Pixel {
  typename Loose<uint64_t>::type words[bytes / 8];
};
template <int bytes>
struct Loose<Pixel<bytes>> {
  using type = Pixel<bytes>;  // of loose words
};

// y[o] = x[source[o]] for pixels of a fixed type.
template <typename E>
void copy_pixels(const ColumnTable& t, const typename Loose<E>::type* __restrict x,
                 typename Loose<E>::type* __restrict y) {
  if (t.identity) {
    std::memcpy(y, x, static_cast<size_t>(t.count) * sizeof(E));
  } else if (t.doubling) {
    const int64_t pairs = t.count / 2;
    for (int64_t i = 0; i < pairs; ++i) y[2 * i] = y[2 * i + 1] = x[i];
    if (t.count % 2) y[t.count - 1] = x[pairs];
  } else {
    for (int64_t o = 0; o < t.count; ++o) y[o] = x[t.source[o]];
  }
}

// The same for pixels of any size.
void copy_pixels(const ColumnTable& t, int64_t bytes, const char* x, char* y) {
  if (t.identity) {
    std::memcpy(y, x, static_cast<size_t>(t.count * bytes));
  } else if (bytes >= 16) {
    // Whole pieces, the last one overlapping: no call per pixel, no loop over a tail.
    const auto by_pieces = [&](auto piece) {
      for (int64_t o = 0; o < t.count; ++o) {
        const char* from = x + t.source[o] * bytes;
        char* to = y + o * bytes;
        for (int64_t b = 0; b + piece.value < bytes; b += piece.value)
          std::memcpy(to + b, from + b, piece.value);
        std::memcpy(to + bytes - piece.value, from + bytes - piece.value, piece.value);
      }
    };
    if (bytes >= kVectorBytes)
      by_pieces(std::integral_constant<int, kVectorBytes>{});
    else
      by_pieces(std::integral_constant<int, 16>{});
  } else {
    for (int64_t o = 0; o < t.count; ++o)
      for (int64_t b = 0; b < bytes; ++b) y[o * bytes + b] = x[t.source[o] * bytes + b];
  }
}

// Strips of rows (d, h) of all planes: calls copy(table, source, destination) per row and block.
template <typename Copy>
void forward(const InterpolateParams& p, int64_t planes, int64_t bytes, const char* x, char* y, int threads,
             Copy copy) {
  const SampleAxis ad = axis_d(p), ah = axis_h(p), aw = axis_w(p);
  const int64_t rows = p.out.d * p.out.h, strips = ceil_div(rows, kStrip);
  parallel_for(threads, planes * strips, kStrip * p.out.w * ceil_div(bytes, 16), [&](int64_t task, int) {
    const int64_t plane = task / strips, begin = task % strips * kStrip;
    const char* source = x + plane * volume(p.in) * bytes;
    char* target = y + plane * volume(p.out) * bytes;
    for (int64_t column = 0; column < p.out.w; column += kColumns) {
      const ColumnTable table(aw, column, imin(kColumns, p.out.w - column));
      const char* previous = nullptr;
      for (int64_t r = begin; r < imin(begin + kStrip, rows); ++r) {
        const int64_t row = nearest_index(ad, r / p.out.h) * p.in.h + nearest_index(ah, r % p.out.h);
        const char* from = source + (row * p.in.w + table.base) * bytes;
        char* to = target + (r * p.out.w + column) * bytes;
        // A repeated row of small pixels is cheaper to copy than to expand again.
        if (from == previous && bytes < 64)
          std::memcpy(to, to - p.out.w * bytes, static_cast<size_t>(table.count * bytes));
        else
          copy(table, from, to);
        previous = from;
      }
    }
  });
}

template <typename E>
void forward_of(const InterpolateParams& p, int64_t planes, const void* x, void* y, int threads) {
  forward(p, planes, sizeof(E), static_cast<const char*>(x), static_cast<char*>(y), threads,
          [](const ColumnTable& t, const char* from, char* to) {
            using Loosely = typename Loose<E>::type;
            copy_pixels<E>(t, reinterpret_cast<const Loosely*>(from), reinterpret_cast<Loosely*>(to));
          });
}

// ---- adjoint -----------------------------------------------------------------------------------

constexpr int64_t kBuffer = 2048;  // accumulators per block

// sum[e] = Σ over rows of dy[e], for `count` elements.
template <typename T>
void sum_rows(const T* dy, int64_t stride, int64_t rows, int64_t count, Acc<T>* sum) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  int64_t e = 0;
  for (; e + L <= count; e += L) {
    Vec<A> v{};
    for (int64_t r = 0; r < rows; ++r) v += load(dy + r * stride + e);
    store(sum + e, v);
  }
  if (e < count) {
    Vec<A> v{};
    for (int64_t r = 0; r < rows; ++r) v += load_first(dy + r * stride + e, count - e);
    store_first(sum + e, v, count - e);
  }
}

template <typename T>
void store_row(const Acc<T>* sum, T* dx, int64_t count) {
  constexpr int L = kLanes<Acc<T>>;
  int64_t e = 0;
  for (; e + L <= count; e += L) store(dx + e, load(sum + e));
  for (; e < count; ++e) dx[e] = from_acc<T>(sum[e]);
}

// Input rows of one strip, few channels: first down the rows into a buffer, then along it.
template <typename T>
void narrow_strip(const InterpolateParams& p, int64_t channels, const T* dy, T* dx, int64_t begin,
                  int64_t end) {
  using A = Acc<T>;
  const SampleAxis ad = axis_d(p), ah = axis_h(p), aw = axis_w(p);
  const int64_t stride = p.out.w * channels;
  A sum[kBuffer], result[kBuffer];
  int32_t first[kColumns + 1];
  for (int64_t column = 0, next; column < p.in.w; column = next) {
    // As many inputs as have their outputs (at least one input's) in the buffer.
    const int64_t base = nearest_first(aw, column);
    int64_t columns = 0;
    first[0] = 0;
    while (columns < kColumns && column + columns < p.in.w) {
      const int64_t last = nearest_first(aw, column + columns + 1) - base;
      if (imax(last, columns + 1) * channels > kBuffer) break;
      first[++columns] = static_cast<int32_t>(last);
    }
    const bool wide = columns == 0;  // one input with more outputs than the buffer holds
    next = column + (wide ? 1 : columns);
    const int64_t outputs = wide ? nearest_first(aw, column + 1) - base : first[columns];
    bool doubling = !wide && channels == 1;
    for (int64_t i = 0; i <= columns; ++i) doubling = doubling && first[i] == 2 * i;
    for (int64_t r = begin; r < end; ++r) {
      const Range rd{nearest_first(ad, r / p.in.h), nearest_first(ad, r / p.in.h + 1)};
      const Range rh{nearest_first(ah, r % p.in.h), nearest_first(ah, r % p.in.h + 1)};
      T* to = dx + (r * p.in.w + column) * channels;
      if (wide || rd.end - rd.begin != 1) {
        for (int64_t i = 0; i < next - column; ++i)
          for (int64_t c = 0; c < channels; ++c) {
            A total = 0;
            const int64_t o0 = wide ? 0 : first[i], o1 = wide ? outputs : first[i + 1];
            for (int64_t d = rd.begin; d < rd.end; ++d)
              for (int64_t h = rh.begin; h < rh.end; ++h)
                for (int64_t o = o0; o < o1; ++o)
                  total += to_acc(dy[((d * p.out.h + h) * p.out.w + base + o) * channels + c]);
            to[i * channels + c] = from_acc<T>(total);
          }
        continue;
      }
      sum_rows(dy + (rd.begin * p.out.h + rh.begin) * stride + base * channels, stride, rh.end - rh.begin,
               outputs * channels, sum);
      if (doubling) {
        for (int64_t i = 0; i < columns; ++i) result[i] = sum[2 * i] + sum[2 * i + 1];
      } else {
        for (int64_t i = 0; i < columns; ++i)
          for (int64_t c = 0; c < channels; ++c) {
            A total = 0;
            for (int64_t o = first[i]; o < first[i + 1]; ++o) total += sum[o * channels + c];
            result[i * channels + c] = total;
          }
      }
      store_row(result, to, columns * channels);
    }
  }
}

// The same for many channels: one pixel after the other, over vectors of channels.
template <typename T>
void wide_strip(const InterpolateParams& p, int64_t channels, const T* dy, T* dx, int64_t begin,
                int64_t end) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  const SampleAxis ad = axis_d(p), ah = axis_h(p), aw = axis_w(p);
  for (int64_t r = begin; r < end; ++r) {
    const Range rd{nearest_first(ad, r / p.in.h), nearest_first(ad, r / p.in.h + 1)};
    const Range rh{nearest_first(ah, r % p.in.h), nearest_first(ah, r % p.in.h + 1)};
    Range rw{0, 0};
    for (int64_t i = 0; i < p.in.w; ++i) {
      rw = {rw.end, nearest_first(aw, i + 1)};
      // The sum of `vectors` neighbouring vectors of channels from c on.
      const auto sum = [&](int64_t c, auto vectors, auto load_vector, Vec<A>* v) {
        for (int k = 0; k < vectors.value; ++k) v[k] = Vec<A>{};
        for (int64_t d = rd.begin; d < rd.end; ++d)
          for (int64_t h = rh.begin; h < rh.end; ++h) {
            const T* from = dy + ((d * p.out.h + h) * p.out.w + rw.begin) * channels + c;
            for (int64_t w = rw.begin; w < rw.end; ++w, from += channels)
              for (int k = 0; k < vectors.value; ++k) v[k] += load_vector(from + k * L);
          }
      };
      const auto whole = [](const T* from) { return load(from); };
      T* to = dx + (r * p.in.w + i) * channels;
      Vec<A> v[4];
      int64_t c = 0;
      for (; c + 4 * L <= channels; c += 4 * L) {
        sum(c, std::integral_constant<int, 4>{}, whole, v);
        for (int k = 0; k < 4; ++k) store(to + c + k * L, v[k]);
      }
      for (; c + L <= channels; c += L) {
        sum(c, std::integral_constant<int, 1>{}, whole, v);
        store(to + c, v[0]);
      }
      if (const int64_t rest = channels - c) {
        sum(c, std::integral_constant<int, 1>{}, [rest](const T* from) { return load_first(from, rest); }, v);
        store_first(to + c, v[0], rest);
      }
    }
  }
}

}  // namespace

template <>
void interpolate_nearest<kIsa>(const InterpolateParams& p, const void* x, void* y, int threads) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c;
  const int64_t bytes = element_bytes(p.dtype) * (p.channels_last ? p.c : 1);
  switch (bytes) {
    case 1:
      return forward_of<uint8_t>(p, planes, x, y, threads);
    case 2:
      return forward_of<uint16_t>(p, planes, x, y, threads);
    case 4:
      return forward_of<uint32_t>(p, planes, x, y, threads);
    case 8:
      return forward_of<Pixel<8>>(p, planes, x, y, threads);
    case 16:
      return forward_of<Pixel<16>>(p, planes, x, y, threads);
    case 32:
      return forward_of<Pixel<32>>(p, planes, x, y, threads);
    default:
      return forward(
          p, planes, bytes, static_cast<const char*>(x), static_cast<char*>(y), threads,
          [bytes](const ColumnTable& t, const char* from, char* to) { copy_pixels(t, bytes, from, to); });
  }
}

template <>
void interpolate_nearest_adjoint<kIsa>(const InterpolateParams& p, const void* dy, void* dx, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
    const int64_t rows = p.in.d * p.in.h, strips = ceil_div(rows, kStrip);
    const int64_t work = (kStrip * p.in.w + volume(p.out) / imax(strips, 1)) * channels;
    parallel_for(threads, planes * strips, work, [&](int64_t task, int) {
      const int64_t plane = task / strips, begin = task % strips * kStrip, end = imin(begin + kStrip, rows);
      const T* from = static_cast<const T*>(dy) + plane * volume(p.out) * channels;
      T* to = static_cast<T*>(dx) + plane * volume(p.in) * channels;
      if (channels < kLanes<Acc<T>>)
        narrow_strip(p, channels, from, to, begin, end);
      else
        wide_strip(p, channels, from, to, begin, end);
    });
  });
}

}  // namespace cpu
}  // namespace fastops
