#pragma once
// The inner tile of matrix products whose operands both lie along the depth: dot products of four
// columns with a few rows, with the sums in registers.
//
// AVX-512: 4 columns by 6 rows, 24 sums in 32 registers; a step of the depth takes 10 loads for 24
// multiply-adds, which bound it. AVX2: 4 by 3, 12 sums in 16 registers, and 7 loads for 12.

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "common/host_device.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

inline constexpr int kDotColumns = 4;
#if defined(__AVX512F__)
inline constexpr int kDotRows = 6;
#else
inline constexpr int kDotRows = 3;
#endif

template <int... K>
Simd<float>::Value fold(Simd<float>::Value a, Simd<float>::Value b,
                        std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * K)...) + __builtin_shufflevector(a, b, (2 * K + 1)...);
#else
  using Mask = Simd<float>::Mask;
  return __builtin_shuffle(a, b, Mask{(2 * K)...}) + __builtin_shuffle(a, b, Mask{(2 * K + 1)...});
#endif
}

// Sums of neighbours: those of a, then those of b.
inline Simd<float>::Value fold(Simd<float>::Value a, Simd<float>::Value b) {
  return fold(a, b, std::make_integer_sequence<int, kLanes<float>>{});
}

// sums[q * sums_step + f] = dot(columns[f], rows + q * row_step), plus what is there if
// `accumulate`. Its order does not depend on the number of rows. Rows are read up to the next
// multiple of a register's lanes.
template <int Rows>
void dot_tile(const float* const (&columns)[kDotColumns], const float* rows, int64_t row_step,
              int64_t depth, float* sums, int64_t sums_step, bool accumulate) {
  using S = Simd<float>;
  using V = S::Value;
  constexpr int L = kLanes<float>;
  V s[kDotColumns][Rows] = {};
  const auto step = [&](const auto& column, int64_t k) {
    V w[kDotColumns];
    FASTSEG_UNROLL
    for (int f = 0; f < kDotColumns; ++f) w[f] = S::load(column(f));
    FASTSEG_UNROLL
    for (int q = 0; q < Rows; ++q) {
      const V x = S::load(rows + q * row_step + k);
      FASTSEG_UNROLL
      for (int f = 0; f < kDotColumns; ++f) s[f][q] += w[f] * x;
    }
  };
  int64_t k = 0;
  for (; k + L <= depth; k += L) step([&](int f) { return columns[f] + k; }, k);
  if (k < depth) {  // the next column begins here, or memory of somebody else
    float ends[kDotColumns][L] = {};
    for (int f = 0; f < kDotColumns; ++f) {
      std::memcpy(ends[f], columns[f] + k, (depth - k) * sizeof(float));
    }
    step([&](int f) { return ends[f]; }, k);
  }
  FASTSEG_UNROLL
  for (int q = 0; q < Rows; ++q) {
    V total = fold(fold(s[0][q], s[1][q]), fold(s[2][q], s[3][q]));
    FASTSEG_UNROLL
    for (int lanes = L / kDotColumns; lanes > 1; lanes /= 2) total = fold(total, V{});
    using Four = Simd<float, kDotColumns>;
    float four[L];
    S::store(four, total);
    float* const to = sums + q * sums_step;
    Four::store(to, accumulate ? Four::load(to) + Four::load(four) : Four::load(four));
  }
}

using DotTile = decltype(&dot_tile<1>);

template <int... Q>
constexpr std::array<DotTile, kDotRows + 1> dot_tiles(std::integer_sequence<int, Q...>) {
  return {nullptr, &dot_tile<Q + 1>...};
}

inline constexpr auto kDotTiles =
    dot_tiles(std::make_integer_sequence<int, kDotRows>{});  // by rows

}  // namespace fastseg::cpu::FASTSEG_SIMD
