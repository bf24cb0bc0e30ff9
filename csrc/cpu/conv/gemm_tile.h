#pragma once
// The inner tile of matrix products in float: a few rows of A times 16 columns of B or two times
// 16, with the sums in registers.
//
// AVX-512: 14 rows by 32 columns, 28 sums in 32 registers; a step of k loads 2 vectors of B and 14
// broadcast elements of A for 28 multiply-adds, which bound it. AVX2: 6 rows by 16 in 16 registers.
// B lies in panels (k, 16) whatever the instruction set, so that packed matrices serve all of them.

#include <array>
#include <cstdint>
#include <utility>

#include "common/host_device.h"
#include "cpu/conv/gemm_run.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

#if defined(__AVX512F__)
inline constexpr int kTileRows = 14, kTilePanels = 2;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 6, kTilePanels = 1;
#else
inline constexpr int kTileRows = 2, kTilePanels = 1;
#endif

template <int Panels>
inline constexpr int kTileVectors = Panels * kPanel / kLanes<float>;  // of a row

// sums[i][v] += sum_k a[i * kRowStep + k * kDepthStep] * vector v of the columns b[.][k]. Along the
// way `depth` lines of 64 bytes, `kAheadStep` floats apart, are asked for from `ahead`, into the
// cache of level 4 - kLocality.
template <int Rows, int Panels, int kRowStep, int kDepthStep, int kAheadStep, int kLocality>
[[gnu::always_inline]] inline void gemm_steps(
    const float* a, const float* b, int64_t panel_step, int64_t depth, const float* ahead,
    Simd<float>::Value (&sums)[Rows][kTileVectors<Panels>]) {
  using S = Simd<float>;
  constexpr int kPerPanel = kPanel / kLanes<float>;
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + k * kAheadStep, 0, kLocality);
    S::Value columns[kTileVectors<Panels>];
    FASTSEG_UNROLL
    for (int v = 0; v < kTileVectors<Panels>; ++v) {
      columns[v] =
          S::load(b + v / kPerPanel * panel_step + k * kPanel + v % kPerPanel * kLanes<float>);
    }
    FASTSEG_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const S::Value element = S::fill(a[i * kRowStep + k * kDepthStep]);
      FASTSEG_UNROLL
      for (int v = 0; v < kTileVectors<Panels>; ++v) sums[i][v] += element * columns[v];
    }
  }
}

// c[i][j] = sums[i][j], plus c[i][j] before if `accumulate`.
template <int Rows, int Panels>
[[gnu::always_inline]] inline void gemm_store(
    const Simd<float>::Value (&sums)[Rows][kTileVectors<Panels>], float* c, int64_t c_step,
    bool accumulate) {
  using S = Simd<float>;
  FASTSEG_UNROLL
  for (int i = 0; i < Rows; ++i) {
    FASTSEG_UNROLL
    for (int v = 0; v < kTileVectors<Panels>; ++v) {
      float* to = c + i * c_step + v * kLanes<float>;
      S::store(to, accumulate ? sums[i][v] + S::load(to) : sums[i][v]);
    }
  }
}

// c[i][j] = sum_k a[i * kRowStep + k * kDepthStep] b[j / 16][k][j % 16], plus c[i][j] before if
// `accumulate`, for i < Rows, j < 16 * Panels. The sum over k starts from zero, so that long
// products are sums of short ones, with their accuracy. Along the way `depth` lines of 64 bytes
// from `ahead` are asked for: a panel that comes later, which a product of few rows would wait for.
template <int Rows, int Panels, int kRowStep, int kDepthStep>
inline void gemm_tile(const float* a, const float* b, int64_t panel_step, float* c, int64_t c_step,
                      int64_t depth, bool accumulate, const float* ahead) {
  if (accumulate) {
    FASTSEG_UNROLL
    for (int i = 0; i < Rows; ++i) {
      FASTSEG_UNROLL
      for (int p = 0; p < Panels; ++p) __builtin_prefetch(c + i * c_step + p * kPanel, 1, 3);
    }
  }
  Simd<float>::Value sums[Rows][kTileVectors<Panels>] = {};
  gemm_steps<Rows, Panels, kRowStep, kDepthStep, kPanel, 2>(a, b, panel_step, depth, ahead, sums);
  gemm_store<Rows, Panels>(sums, c, c_step, accumulate);
}

// c[i][j] += the same sum over the steps of [run, end), with A in panels (k, kDepthStep). Along the
// way the same steps of the panel `ahead` floats behind are asked for.
template <int Rows, int Panels, int kDepthStep>
inline void gemm_tile_runs(const float* a, const float* b, int64_t panel_step, float* c,
                           int64_t c_step, const GemmRun* run, const GemmRun* end, int64_t ahead) {
  Simd<float>::Value sums[Rows][kTileVectors<Panels>] = {};
  for (; run != end; ++run) {
    const float* const from = a + run->a * kDepthStep;
    gemm_steps<Rows, Panels, 1, kDepthStep, kDepthStep, 3>(from, b + run->b * kPanel, panel_step,
                                                           run->count, from + ahead, sums);
  }
  gemm_store<Rows, Panels>(sums, c, c_step, true);
}

// What `tile.operator()<Rows, Panels>()` returns, a function, by whether kTilePanels panels or one
// are multiplied, and by rows, of which there are 1 to kTileRows.
template <class Tile>
constexpr auto gemm_tiles(Tile tile) {
  const auto by_rows = [tile]<int Panels, int... R>(std::integer_sequence<int, R...>) {
    using Function = decltype(tile.template operator()<1, Panels>());
    return std::array<Function, kTileRows + 1>{nullptr,
                                               tile.template operator()<R + 1, Panels>()...};
  };
  constexpr std::make_integer_sequence<int, kTileRows> rows;
  return std::array{by_rows.template operator()<1>(rows),
                    by_rows.template operator()<kTilePanels>(rows)};
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
