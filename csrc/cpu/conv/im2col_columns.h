#pragma once
// Products of filters as they are and a panel of pixels, whose numbers of one depth lie together.

#include <array>
#include <utility>

#include "common/host_device.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// sums[i][j] = dot(filters[i], column j of the panel), plus what is there if `accumulate`. Rows of
// the panel and of the sums are Step apart.
template <int Step, int Filters, int Pixels>
void multiply_columns(const float* filters, int64_t filter_step, const float* panel, int64_t depth,
                      float* sums, bool accumulate) {
  using S = Simd<float>;
  using V = S::Value;
  constexpr int L = kLanes<float>, kVectors = Pixels / L;
  const float* rows[Filters];
  for (int i = 0; i < Filters; ++i) rows[i] = filters + i * filter_step;
  V s[Filters][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V columns[kVectors];
    FASTSEG_UNROLL
    for (int v = 0; v < kVectors; ++v) columns[v] = S::load(panel + k * Step + v * L);
    FASTSEG_UNROLL
    for (int i = 0; i < Filters; ++i) {
      const V weight = S::fill(rows[i][k]);
      FASTSEG_UNROLL
      for (int v = 0; v < kVectors; ++v) s[i][v] += weight * columns[v];
    }
  }
  FASTSEG_UNROLL
  for (int i = 0; i < Filters; ++i) {
    FASTSEG_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* const to = sums + i * Step + v * L;
      S::store(to, accumulate ? s[i][v] + S::load(to) : s[i][v]);
    }
  }
}

using MultiplyColumns = decltype(&multiply_columns<16, 1, 16>);

template <int Step, int Pixels, int... I>
constexpr std::array<MultiplyColumns, sizeof...(I) + 1> multiply_columns_table(
    std::integer_sequence<int, I...>) {
  return {nullptr, &multiply_columns<Step, I + 1, Pixels>...};
}

// By the number of filters, up to Most.
template <int Step, int Pixels, int Most>
constexpr auto kMultiplyColumns =
    multiply_columns_table<Step, Pixels>(std::make_integer_sequence<int, Most>{});

}  // namespace fastseg::cpu::FASTSEG_SIMD
