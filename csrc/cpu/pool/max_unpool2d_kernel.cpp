// out[position(code)] = value (max_unpool2d) or += value (max_pool2d_backward), 0 elsewhere.
//
// Floor: every value, code and output element moves once; for 2x2 windows of float32, 4 + 1 bytes
// in and 16 out for each window. No two threads meet, so the result does not depend on their
// number, and windows that overlap act in raster order, as in torch. Two ways:
// - rows of the output in order, each element written once: 2x2 windows in either layout, and any
//   windows in channels_last, where a vector of channels looks at the windows that cover it;
// - zeros, then values, plane by plane: where rows or channels are too few to fill vectors, and
//   contiguous planes with other windows.

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

#include "cpu/conv/window_taps.h"
#include "cpu/pool/max_unpool2d.h"
#include "cpu/pool/row_writer.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// What a lone value is added to: torch's sum is zero plus the value, which is not -0.0; the sum
// with -0.0 is the value itself.
template <class T>
Compute<T> zero_of(const MaxUnpool2d<T>& op) {
  return op.accumulate ? Compute<T>{0} : Compute<T>{-0.0};
}

// Each value of a 2x2 window row goes to one of the two elements below it in output row 2i + ki.
template <class T, int L>
typename Simd<T, L>::Value placed(const T* values, const uint8_t* codes, int code,
                                  Compute<T> zero) {
  using S = Simd<T, L>;
  const typename S::Value value =
      S::load_codes(codes) == S::fill_code(code) ? S::load(values) : typename S::Value{};
  return value + zero;
}

template <class T>
void row_2x2(const MaxUnpool2d<T>& op, const T* values, const uint8_t* codes, int ki,
             RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  const Compute<T> zero = zero_of(op);
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve / 2;
  for (int64_t j = 0; j < w.windows; j += kStretch) {
    const int64_t n = std::min(kStretch, w.windows - j);
    T* p = out.reserve(2 * n);
    for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
      const T* v = values + j + k;
      const uint8_t* c = codes + j + k;
      Simd<T, lanes>::store_interleaved(p + 2 * k, placed<T, lanes>(v, c, 2 * ki, zero),
                                        placed<T, lanes>(v, c, 2 * ki + 1, zero));
    });
    out.advance(2 * n);
  }
  out.zeros(w.size - 2 * w.windows);
}

template <class T>
void row_2x2_channels_last(const MaxUnpool2d<T>& op, const T* values, const uint8_t* codes, int ki,
                           RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  const Compute<T> zero = zero_of(op);
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t x = 0; x < 2 * w.windows; ++x) {
    const int64_t first = x / 2 * op.channels;
    const int code = 2 * ki + static_cast<int>(x % 2);
    for (int64_t c = 0; c < op.channels; c += kStretch) {
      const int64_t n = std::min(kStretch, op.channels - c);
      T* p = out.reserve(n);
      for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
        Simd<T, lanes>::store(
            p + k, placed<T, lanes>(values + first + c + k, codes + first + c + k, code, zero));
      });
      out.advance(n);
    }
  }
  out.zeros((w.size - 2 * w.windows) * op.channels);
}

// The output rows 2i and 2i + 1 of a plane, in one go where they stay in the caches.
template <class T>
void both_rows_2x2(const MaxUnpool2d<T>& op, const T* values, const uint8_t* codes, T* top) {
  const PoolAxis& w = op.pool.w;
  const Compute<T> zero = zero_of(op);
  T* const bottom = top + w.size;
  for_blocks<kLanes<T>>(0, w.windows, [&](auto lanes, int64_t j) {
    using S = Simd<T, lanes>;
    const auto at = [&](int code) { return placed<T, lanes>(values + j, codes + j, code, zero); };
    S::store_interleaved(top + 2 * j, at(0), at(1));
    S::store_interleaved(bottom + 2 * j, at(2), at(3));
  });
  for (T* row : {top, bottom}) std::fill(row + 2 * w.windows, row + w.size, T{});
}

template <class T>
void rows_2x2(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  const PoolAxis& h = op.pool.h;
  const int64_t lanes = op.lanes(), width = op.pool.w.size * lanes;
  const bool both_at_once = !op.channels_last && !op.stream;
  CodeRows codes(op.pool, op.codes, lanes);
  RowWriter<T> out(op.out + begin * width, op.stream);
  int64_t plane = begin / h.size, y = begin % h.size;
  for (int64_t r = begin; r < end;) {
    const int64_t i = y / 2;
    int64_t rows = 1;
    if (i >= h.windows) {
      out.zeros(width);
    } else {
      const T* values = op.values + (plane * h.windows + i) * op.pool.w.windows * lanes;
      if (both_at_once && y % 2 == 0 && r + 1 < end) {
        rows = 2;
        both_rows_2x2(op, values, codes.row(plane, i), out.reserve(2 * width));
        out.advance(2 * width);
      } else {
        const auto row = op.channels_last ? row_2x2_channels_last<T> : row_2x2<T>;
        row(op, values, codes.row(plane, i), static_cast<int>(y % 2), out);
      }
    }
    r += rows;
    y += rows;
    if (y == h.size) ++plane, y = 0;
  }
}

// No coordinate belongs to two windows.
bool disjoint(const PoolAxis& axis) {
  return axis.stride >= int64_t{axis.dilation} * (axis.kernel - 1) + 1;
}

template <bool kAccumulate, class V, class M>
V combined(V before, V value, M here) {
  return kAccumulate ? before + (here ? value : V{}) : (here ? value : before);
}

// Whole planes or images, which stay in the cache between the zeros and the values. kSums: windows
// may meet, and their values add up. kPlanes: contiguous, not channels_last.
template <bool kSums, bool kPlanes, class T>
void scatter(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  const PoolAxis &h = op.pool.h, &w = op.pool.w;
  const int64_t lanes = kPlanes ? 1 : op.channels, size = h.size * w.size * lanes;
  CodeRows codes(op.pool, op.codes, lanes);
  const WindowTaps window_taps(op.pool, lanes);
  const Taps& taps = window_taps.whole();
  constexpr bool kDirect = std::is_same_v<T, Compute<T>>;
  std::vector<Compute<T>> scratch(kDirect ? 0 : size);  // sums of a 16-bit type are rounded once
  const Compute<T> zero = zero_of(op);                  // where windows cannot meet
  for (int64_t p = begin; p < end; ++p) {
    T* out = op.out + p * size;
    Compute<T>* plane = kDirect ? reinterpret_cast<Compute<T>*>(out) : scratch.data();
    std::fill_n(plane, size, Compute<T>{});
    const T* values = op.values + p * h.windows * w.windows * lanes;
    const uint8_t* k = codes.rows(p, 0, h.windows);
    if (codes.bad()) return;
    for (int64_t i = 0; i < h.windows; ++i) {
      int64_t origin = window_taps.origin(i, 0);
      for (int64_t j = 0; j < w.windows; ++j, origin += w.stride * lanes) {
        for (int64_t c = 0; c < lanes; ++c) {
          Compute<T>& element = plane[origin + taps.offset[*k++] + c];
          element = static_cast<Compute<T>>(*values++) + (kSums ? element : zero);
        }
      }
    }
    if constexpr (!kDirect) {
      for_blocks<kLanes<T>>(0, size, [&](auto block, int64_t x) {
        Simd<T, block>::store(out + x, Simd<Compute<T>, block>::load(plane + x));
      });
    }
  }
}

// The windows along one axis that cover each coordinate, in raster order.
class Covers {
 public:
  struct Cover {
    int64_t window;
    int tap;
  };

  explicit Covers(const PoolAxis& axis) : first_(axis.size + 1) {
    for (int64_t x = 0; x < axis.size; ++x) {
      for (int64_t window = axis.first_window(x); window < axis.end_window(x); ++window) {
        const int tap = axis.tap_at(window, x);
        if (tap >= 0) covers_.push_back({window, tap});
      }
      first_[x + 1] = static_cast<int64_t>(covers_.size());
    }
  }
  std::span<const Cover> operator[](int64_t x) const {
    return {covers_.data() + first_[x], covers_.data() + first_[x + 1]};
  }

 private:
  std::vector<int64_t> first_;
  std::vector<Cover> covers_;
};

// Any window, channels_last: every position looks at the windows that cover it.
template <bool kAccumulate, class T>
void rows_of_any_window(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  struct Row {
    const T* values;
    const uint8_t* codes;
    int first_code;
  };
  const PoolAxis &h = op.pool.h, &w = op.pool.w;
  const int64_t channels = op.channels, pooled_row = w.windows * channels;
  const Covers above(h), beside(w);
  CodeRows codes(op.pool, op.codes, channels);
  RowWriter<T> out(op.out + begin * w.size * channels, op.stream);
  std::vector<Row> rows;
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t r = begin; r < end; ++r) {
    rows.clear();
    for (const auto& [i, ki] : above[r % h.size]) {
      const int64_t n = r / h.size;
      rows.push_back(
          {op.values + (n * h.windows + i) * pooled_row, codes.row(n, i), ki * w.kernel});
    }
    for (int64_t x = 0; x < w.size; ++x) {
      for (int64_t stretch = 0; stretch < channels; stretch += kStretch) {
        const int64_t n = std::min(kStretch, channels - stretch);
        T* p = out.reserve(n);
        const auto gather = [&](auto lanes, auto vectors, int64_t c) {
          using S = Simd<T, lanes>;
          typename S::Value sums[vectors] = {};
          for (const Row& row : rows) {
            for (const auto& [j, kj] : beside[x]) {
              const int64_t at = j * channels + stretch + c;
              const auto code = S::fill_code(row.first_code + kj);
              for (int v = 0; v < vectors; ++v) {
                const auto here = S::load_codes(row.codes + at + v * lanes) == code;
                sums[v] =
                    combined<kAccumulate>(sums[v], S::load(row.values + at + v * lanes), here);
              }
            }
          }
          for (int v = 0; v < vectors; ++v) S::store(p + c + v * lanes, sums[v]);
        };
        // Several vectors at a time, since few windows cover a position.
        constexpr std::integral_constant<int, 4> kVectors;
        constexpr std::integral_constant<int, kLanes<T>> kFull;
        int64_t c = 0;
        for (; c + kVectors * kFull <= n; c += kVectors * kFull) gather(kFull, kVectors, c);
        if (c < n) {  // the last vector is moved back, so that it is whole
          const int64_t rest = std::min(c, std::max<int64_t>(n - kFull, 0));
          for_blocks<kLanes<T>>(rest, n, [&](auto lanes, int64_t at) {
            gather(lanes, std::integral_constant<int, 1>{}, at);
          });
        }
        out.advance(n);
      }
    }
  }
}

}  // namespace

template <class T>
void max_unpool2d_rows(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  if (op.by_planes()) {
    const int64_t first = begin / op.pool.h.size, last = end / op.pool.h.size;
    const bool sums = op.accumulate && !(disjoint(op.pool.h) && disjoint(op.pool.w));
    if (op.channels_last) {
      sums ? scatter<true, false>(op, first, last) : scatter<false, false>(op, first, last);
    } else {
      sums ? scatter<true, true>(op, first, last) : scatter<false, true>(op, first, last);
    }
  } else if (op.pool.is_2x2()) {
    rows_2x2(op, begin, end);
  } else {
    op.accumulate ? rows_of_any_window<true>(op, begin, end)
                  : rows_of_any_window<false>(op, begin, end);
  }
}

#define FASTSEG_INSTANTIATE(T) \
  template void max_unpool2d_rows(const MaxUnpool2d<T>&, int64_t, int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
