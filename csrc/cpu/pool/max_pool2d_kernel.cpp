// values, codes = max_pool2d(x), and the same behind relu(x * scale + shift).
//
// Floor: every input element is read once, every value and one byte of code written once; for 2x2
// windows of float32, 16 + 4 + 1 bytes an output and about 12 operations, so memory decides.
// - contiguous: a vector holds L neighbouring windows of a row. Taps a stride of 2 apart are split
//   into even and odd lanes as they are loaded; 2x2 windows use each load for two taps.
// - channels_last: a vector holds L channels of one window, whatever the window's shape.

#include <algorithm>
#include <limits>

#include "cpu/conv/window_taps.h"
#include "cpu/pool/max_pool2d.h"
#include "cpu/pool/row_writer.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

template <class T, int L>
struct Identity {
  using Value = typename Simd<T, L>::Value;

  Value first(Value x) const { return x; }
  Value later(Value x) const { return x; }
};

// Rounds to T before the comparison: the codes are those of the unfused chain. ReLU is needed at a
// window's first tap alone: a maximum that starts at zero or above is not replaced by a candidate
// below zero, nor by the zero that ReLU would make of it.
template <class T, int L>
struct ScaleShiftReLU {
  using Value = typename Simd<T, L>::Value;

  Value scale, shift;

  Value first(Value x) const {
    const Value y = later(x);
    return y < 0 ? Value{} : y;  // NaN and -0.0 pass, as in torch
  }
  Value later(Value x) const { return Simd<T, L>::rounded(x * scale + shift); }
};

// What happens to an element between its load and its comparison.
template <bool kAffine, class T, class Scale>
struct Prologue {
  const MaxPool2d<T, Scale>& op;

  // For L neighbours of channel c.
  template <int L>
  auto same_channel(int64_t c) const {
    if constexpr (kAffine) {
      using S = Simd<T, L>;
      return ScaleShiftReLU<T, L>{S::fill(op.scale[c]), S::fill(op.shift[c])};
    } else {
      return Identity<T, L>{};
    }
  }

  // For channels c .. c + L - 1.
  template <int L>
  auto channels(int64_t c) const {
    if constexpr (kAffine) {
      using S = Simd<Scale, L>;
      return ScaleShiftReLU<T, L>{S::load(op.scale + c), S::load(op.shift + c)};
    } else {
      return Identity<T, L>{};
    }
  }
};

// The running maxima of L windows and their codes.
template <class T, int L>
struct Maxima {
  using S = Simd<T, L>;
  typename S::Value value;
  typename S::Mask code;

  Maxima(typename S::Value first, int first_code) : value(first), code(S::fill_code(first_code)) {}

  void take(typename S::Value candidate, int candidate_code) {
    const auto wins = (candidate > value) | (candidate != candidate);
    value = wins ? candidate : value;
    code = wins ? S::fill_code(candidate_code) : code;
  }
  void store(T* values, uint8_t* codes) const {
    S::store(values, value);
    S::store_codes(codes, code);
  }
};

// L windows whose origins are `stride` elements apart, the first at p. kCount is the number of taps
// where the compiler shall unroll them, else 0; kStride likewise.
template <int L, int kCount, int kStride, class T, class Load>
void pool_windows(const Taps& taps, const T* p, int64_t stride, const Load& prologue, T* values,
                  uint8_t* codes) {
  using S = Simd<T, L>;
  const auto load = [&](int t) {
    if constexpr (L == 1 || kStride == 1) {
      return S::load(p + taps.offset[t]);
    } else if constexpr (kStride == 2) {
      return S::load_even(p + taps.offset[t]);
    } else {
      return S::load_strided(p + taps.offset[t], stride);
    }
  };
  const int count = kCount > 0 ? kCount : taps.count;
  if (count == 0) {  // every tap is padding, as dilation and ceil_mode can make it
    constexpr auto kLowest = -std::numeric_limits<typename S::F>::infinity();
    return Maxima<T, L>(S::fill(kLowest), taps.first_code).store(values, codes);
  }
  Maxima<T, L> maxima(prologue.first(load(0)), taps.first_code);
  for (int t = 1; t < count; ++t) maxima.take(prologue.later(load(t)), taps.code[t]);
  maxima.store(values, codes);
}

template <int L, class T, class Load>
void pool_windows_2x2(const T* row, int64_t width, const Load& prologue, T* values,
                      uint8_t* codes) {
  using S = Simd<T, L>;
  for (int ki = 2; ki < 4; ++ki) S::prefetch_even_odd(row + ki * width);
  const auto [x0, x1] = S::load_even_odd(row);
  const auto [x2, x3] = S::load_even_odd(row + width);
  Maxima<T, L> maxima(prologue.first(x0), 0);
  maxima.take(prologue.later(x1), 1);
  maxima.take(prologue.later(x2), 2);
  maxima.take(prologue.later(x3), 3);
  maxima.store(values, codes);
}

// One stretch [first, end) of the windows of row i.
template <class T, class Affine>
void pool_stretch(const Pool2d& pool, WindowTaps& window_taps, const T* plane, int64_t i,
                  int64_t first, int64_t end, int64_t channel, const Affine& prologue, T* values,
                  uint8_t* codes) {
  const PoolAxis& w = pool.w;
  if (pool.is_2x2()) {
    const T* row = plane + 2 * i * w.size;
    for_blocks<kLanes<T>>(first, end, [&](auto lanes, int64_t j) {
      pool_windows_2x2<lanes>(row + 2 * j, w.size, prologue.template same_channel<lanes>(channel),
                              values + (j - first), codes + (j - first));
    });
    return;
  }
  // Windows that reach into the padding are a prefix and a suffix of the row.
  int64_t inner = first, inner_end = end;
  while (inner < end && !w.whole(inner)) ++inner;
  while (inner_end > inner && !w.whole(inner_end - 1)) --inner_end;

  const auto one_by_one = [&](int64_t from, int64_t to) {
    const auto load = prologue.template same_channel<1>(channel);
    for (int64_t j = from; j < to; ++j) {
      pool_windows<1, 0, 1>(window_taps.inside(i, j), plane + window_taps.origin(i, j), 0, load,
                            values + (j - first), codes + (j - first));
    }
  };
  one_by_one(first, inner);
  if (inner < inner_end) {
    const Taps& taps = window_taps.inside(i, inner);
    for_blocks<kLanes<T>>(inner, inner_end, [&](auto lanes, int64_t j) {
      const auto load = prologue.template same_channel<lanes>(channel);
      const T* p = plane + window_taps.origin(i, j);
      T* v = values + (j - first);
      uint8_t* k = codes + (j - first);
      if constexpr (lanes == 1) return pool_windows<1, 0, 1>(taps, p, 0, load, v, k);
      if constexpr (kSpecialForms<T>) {
        if (w.stride == 1) return pool_windows<lanes, 0, 1>(taps, p, 1, load, v, k);
        if (w.stride == 2) return pool_windows<lanes, 0, 2>(taps, p, 2, load, v, k);
      }
      pool_windows<lanes, 0, 0>(taps, p, w.stride, load, v, k);
    });
  }
  one_by_one(inner_end, end);
}

template <class T, class Scale, class Affine>
void contiguous(const MaxPool2d<T, Scale>& op, const Affine& prologue, int64_t begin, int64_t end) {
  const PoolAxis &h = op.pool.h, &w = op.pool.w;
  RowWriter<T> values(op.values + begin * w.windows, op.stream);
  RowWriter<uint8_t> codes(op.codes + begin * w.windows, op.stream);
  WindowTaps window_taps(op.pool, 1);
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / h.windows, i = row % h.windows;
    for (int64_t j = 0; j < w.windows; j += kStretch) {
      const int64_t n = std::min(kStretch, w.windows - j);
      pool_stretch(op.pool, window_taps, op.x + plane * h.size * w.size, i, j, j + n,
                   plane % op.channels, prologue, values.reserve(n), codes.reserve(n));
      values.advance(n);
      codes.advance(n);
    }
  }
}

// Two vectors of channels of a window, so that a tap's offset and code are looked up once for both.
template <int L, class T, class Load>
void pool_pair(const Taps& taps, const T* p, const Load& left, const Load& right, T* values,
               uint8_t* codes) {
  using S = Simd<T, L>;
  const auto load = [&](int t, int v) { return S::load(p + taps.offset[t] + v * L); };
  Maxima<T, L> first(left.first(load(0, 0)), taps.first_code);
  Maxima<T, L> second(right.first(load(0, 1)), taps.first_code);
  for (int t = 1; t < taps.count; ++t) {
    first.take(left.later(load(t, 0)), taps.code[t]);
    second.take(right.later(load(t, 1)), taps.code[t]);
  }
  first.store(values, codes);
  second.store(values + L, codes + L);
}

template <class T, class Scale, class Affine>
void channels_last(const MaxPool2d<T, Scale>& op, const Affine& prologue, int64_t begin,
                   int64_t end) {
  const PoolAxis &h = op.pool.h, &w = op.pool.w;
  const int64_t channels = op.channels;
  RowWriter<T> values(op.values + begin * w.windows * channels, op.stream);
  RowWriter<uint8_t> codes(op.codes + begin * w.windows * channels, op.stream);
  WindowTaps window_taps(op.pool, channels);
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / h.windows, i = row % h.windows;
    const T* image = op.x + n * h.size * w.size * channels;
    for (int64_t j = 0; j < w.windows; ++j) {
      const Taps& taps = window_taps.inside(i, j);
      const T* p = image + window_taps.origin(i, j);
      for (int64_t stretch = 0; stretch < channels; stretch += kStretch) {
        const int64_t size = std::min(kStretch, channels - stretch);
        T* v = values.reserve(size);
        uint8_t* k = codes.reserve(size);
        int64_t paired = 0;
        if (kSpecialForms<T> && taps.count > 4) {
          constexpr int L = kLanes<T>;
          for (; paired + 2 * L <= size; paired += 2 * L) {
            const int64_t c = stretch + paired;
            pool_pair<L>(taps, p + c, prologue.template channels<L>(c),
                         prologue.template channels<L>(c + L), v + paired, k + paired);
          }
        }
        const auto pool_channels = [&](auto count) {
          // The last vector is moved back, so that it is whole.
          const int64_t whole = std::min(paired, std::max<int64_t>(size - kLanes<T>, 0));
          for_blocks<kLanes<T>>(paired < size ? whole : size, size, [&](auto lanes, int64_t c) {
            const auto load = prologue.template channels<lanes>(stretch + c);
            pool_windows<lanes, count, 1>(taps, p + stretch + c, 1, load, v + c, k + c);
          });
        };
        if (kSpecialForms<T> && taps.count == 4) {
          pool_channels(std::integral_constant<int, kSpecialForms<T> ? 4 : 0>{});
        } else {
          pool_channels(std::integral_constant<int, 0>{});
        }
        values.advance(size);
        codes.advance(size);
      }
    }
  }
}

}  // namespace

template <class T, class Scale>
void max_pool2d_rows(const MaxPool2d<T, Scale>& op, int64_t begin, int64_t end) {
  const auto run = [&](const auto& prologue) {
    op.channels_last ? channels_last(op, prologue, begin, end)
                     : contiguous(op, prologue, begin, end);
  };
  if (op.scale != nullptr) {
    run(Prologue<true, T, Scale>{op});
  } else {
    run(Prologue<false, T, Scale>{op});
  }
}

#define FASTSEG_INSTANTIATE(T) \
  template void max_pool2d_rows(const MaxPool2d<T, Compute<T>>&, int64_t, int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
