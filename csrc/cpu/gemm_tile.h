#pragma once
// The inner tile of matrix products in float: a few rows of A times 16 columns of B or two times
// 16, with the sums in registers.
//
// AVX-512: 14 rows by 32 columns, 28 sums in 32 registers; a step of k loads 2 vectors of B and 14
// broadcast elements of A for 28 multiply-adds, which bound it. AVX2: 6 rows by 16 in 16 registers.
// B lies in panels (k, 16) whatever the instruction set, so that packed matrices serve all of them.

#include <cstdint>
#include <utility>

#include "common/host_device.h"
#include "cpu/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

inline constexpr int kPanel = 16;  // columns of a packed panel of B

#if defined(__AVX512F__)
inline constexpr int kTileRows = 14, kTilePanels = 2;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTilePanels = 1;
#else
inline constexpr int kTileRows = 2, kTilePanels = 1;
#endif

// c[i][j] = sum_k a[i * kRowStep + k * kDepthStep] b[j / 16][k][j % 16], plus c[i][j] before if
// `accumulate`, for i < Rows, j < 16 * Panels. The sum over k starts from zero, so that long
// products are sums of short ones, with their accuracy. Along the way `depth` lines of 64 bytes
// from `ahead` are asked for: a panel that comes later, which a product of few rows would wait for.
template <int Rows, int Panels, int kRowStep, int kDepthStep>
inline void gemm_tile(const float* a, const float* b, int64_t panel_step, float* c, int64_t c_step,
                      int64_t depth, bool accumulate, const float* ahead) {
  using S = Simd<float>;
  using V = S::Value;
  constexpr int kVectors = Panels * kPanel / kLanes<float>;
  constexpr int kPerPanel = kPanel / kLanes<float>;
  if (accumulate) {
    FASTSEG_UNROLL
    for (int i = 0; i < Rows; ++i) {
      FASTSEG_UNROLL
      for (int p = 0; p < Panels; ++p) __builtin_prefetch(c + i * c_step + p * kPanel, 1, 3);
    }
  }
  V sums[Rows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + k * kPanel, 0, 2);
    V columns[kVectors];
    FASTSEG_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      columns[v] =
          S::load(b + v / kPerPanel * panel_step + k * kPanel + v % kPerPanel * kLanes<float>);
    }
    FASTSEG_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const V element = S::fill(a[i * kRowStep + k * kDepthStep]);
      FASTSEG_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[i][v] += element * columns[v];
    }
  }
  FASTSEG_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FASTSEG_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + i * c_step + v * kLanes<float>;
      S::store(to, accumulate ? sums[i][v] + S::load(to) : sums[i][v]);
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
