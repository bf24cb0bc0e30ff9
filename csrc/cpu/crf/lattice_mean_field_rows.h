#pragma once
// Rows of labels, one a point, from and to any layout; powers of two and sums of lanes.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/crf/lattice_mean_field.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

inline constexpr float kLog2 = 0.69314718f;

// 2^x to 2e-7; zero below 2^-100, so that products with weights stay normal numbers;
// x above 127 counts as 127.
template <class V>
inline V exp2_lanes(V x) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  using I = Lanes<int32_t, kWidth>;
  const V magic = 12582912.f - V{};  // 1.5 * 2^23: the sum is rounded to an integer
  const I tiny = x < -100.f;
  x = tiny ? V{} : x;
  x = x > 127.f ? 127.f - V{} : x;
  const V shifted = x + magic;
  const V f = x - (shifted - magic);    // within [-1/2, 1/2]
  V p = 1.32647e-3f * f + 9.67151e-3f;  // minimax for 2^f
  p = p * f + 5.550734e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.f;
  const I power = bit_cast<I>(p) + (bit_cast<I>(shifted) << 23);
  return bit_cast<V>(tiny ? I{} : power);
}

template <int... K, class V>
inline V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, K...);
#else
  return __builtin_shuffle(a, b, Lanes<int32_t, sizeof...(K)>{K...});
#endif
}

inline float sum_lanes(Lanes<float, 4> x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline float sum_lanes(Lanes<float, 8> x) {
  using Half = Lanes<float, 4>;
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return sum_lanes(halves[0] + halves[1]);
}
inline float sum_lanes(Lanes<float, 16> x) {
  using Half = Lanes<float, 8>;
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return sum_lanes(halves[0] + halves[1]);
}

using Row8 = Lanes<float, 8>;

inline void transpose_8x8(Row8 (&r)[8]) {
  for (int i = 0; i < 4; ++i) {
    const Row8 a = r[i], b = r[i + 4];
    r[i] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(a, b);
    r[i + 4] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(a, b);
  }
  for (const int i : {0, 1, 4, 5}) {
    const Row8 a = r[i], b = r[i + 2];
    r[i] = shuffle<0, 1, 8, 9, 4, 5, 12, 13>(a, b);
    r[i + 2] = shuffle<2, 3, 10, 11, 6, 7, 14, 15>(a, b);
  }
  for (const int i : {0, 2, 4, 6}) {
    const Row8 a = r[i], b = r[i + 1];
    r[i] = shuffle<0, 8, 2, 10, 4, 12, 6, 14>(a, b);
    r[i + 1] = shuffle<1, 9, 3, 11, 5, 13, 7, 15>(a, b);
  }
}

// Element (label, point) of out from rows[point * pitch + label].
inline void rows_to_labels(const float* rows, int count, int64_t labels, int64_t pitch, float* out,
                           LabelStrides to) {
  if (to.label == 1) {
    for (int i = 0; i < count; ++i) std::copy_n(rows + i * pitch, labels, out + i * to.point);
    return;
  }
  int i = 0;
  if (to.point == 1 && pitch >= 8) {
    for (; i + 8 <= count; i += 8) {
      for (int64_t label = 0; label < labels; label += 8) {
        Row8 r[8];
        for (int k = 0; k < 8; ++k) r[k] = read<Row8>(rows + (i + k) * pitch + label);
        transpose_8x8(r);
        const int valid = static_cast<int>(std::min<int64_t>(8, labels - label));
        for (int k = 0; k < valid; ++k) write(out + (label + k) * to.label + i, r[k]);
      }
    }
  }
  for (; i < count; ++i) {
    for (int64_t l = 0; l < labels; ++l) out[l * to.label + i * to.point] = rows[i * pitch + l];
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
