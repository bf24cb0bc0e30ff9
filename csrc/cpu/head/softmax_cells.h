#pragma once
// The softmax of a block of cells (bilinear_cells.h), without a pass that looks for each pixel's
// largest logit: by powers of two (common/head/log2_softmax.h). The planes hold x of the corners.

#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/head/log2_softmax.h"
#include "cpu/head/cell_planes.h"
#include "cpu/head/cell_row.h"
#include "cpu/simd/simd_any.h"
#include "cpu/simd/simd_exp.h"
#include "cpu/simd/simd_log.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class T>
class SoftmaxCells {
 public:
  using F = Compute<T>;
  using V = Vector<F>;
  static constexpr int L = kLanes<T>;

  // Memory of classes * kCorners * L numbers.
  SoftmaxCells(const UpsampledLogits<T>& logits, F* planes)
      : logits_(logits), planes_(planes), corners_(logits, planes) {}

  void load(int64_t n, const BilinearBand& band, int64_t block) {
    Bound largest{Simd<F>::fill(-std::numeric_limits<F>::infinity())};
    finite_ = corners_.load(n, band, block, largest);
    const V bound = largest.value;
    const BilinearCells<F>& cells = *logits_.cells;
    w0_ = cells.w0.data() + block * cells.block_slots();
    w1_ = cells.w1.data() + block * cells.block_slots();
    const int64_t vectors = logits_.classes * kCorners;
    // Logits may be the least number of all, whose distance overflows.
    constexpr F kFarthest = std::numeric_limits<F>::max() / 4;
    for (int64_t i = 0; i < vectors; ++i) {
      const V v = Simd<F>::load(planes_ + i * L);
      V x = (bound - v) * kLog2e<F>;
      x = (x > kFarthest) & (v - v == V{}) ? Simd<F>::fill(kFarthest) : x;
      Simd<F>::store(planes_ + i * L, x);
    }
  }

  CellRow<F> row(int64_t y) const {
    const BilinearRows<F>& rows = *logits_.rows;
    return {planes_, rows.w0[y], rows.w1[y], w0_, w1_};
  }

  // s of a row's pixels, [phase][lane].
  void normalize(const CellRow<F>& row, F* s) const {
    int phase = 0;
    const auto take = [&]<int Q>(std::integral_constant<int, Q>) {
      for (; logits_.cells->phases - phase >= Q; phase += Q) normalize<Q>(row, phase, s);
    };
    if constexpr (FASTSEG_SIMD_BYTES == 64) take(std::integral_constant<int, 8>{});
    take(std::integral_constant<int, 4>{});
    take(std::integral_constant<int, 2>{});
    take(std::integral_constant<int, 1>{});
  }

 private:
  // The largest of all corners.
  struct Bound {
    V value;

    void operator()(int64_t, const std::array<V, kCorners>& corners) {
      for (const V v : corners) value = v > value ? v : value;
    }
  };

  template <int Q>
  void normalize(const CellRow<F>& row, int phase, F* s) const {
    V sum[Q] = {}, a, b;
    for (int64_t k = 0; k < logits_.classes; ++k) {
      row.sides(k, a, b);
      for (int q = 0; q < Q; ++q) sum[q] += exp2_of_minus<F>(row.value(phase + q, a, b), F(1));
    }
    for (int q = 0; q < Q; ++q) {
      F* to = s + (phase + q) * L;
      if (finite_ && !any_lane<F>(sum[q] < kVanishes<F>)) {
        Simd<F>::store(to, log2_of_normal<F>(sum[q]));
      } else {
        normalize_beside_largest(row, phase + q, to);
      }
    }
  }

  // Writes s of one phase.
  void normalize_beside_largest(const CellRow<F>& row, int phase, F* s) const {
    V least = Simd<F>::fill(std::numeric_limits<F>::infinity()), sum{}, a, b;
    for (int64_t k = 0; k < logits_.classes; ++k) {
      row.sides(k, a, b);
      const V x = row.value(phase, a, b);
      least = x < least ? x : least;
    }
    V undefined{};
    for (int64_t k = 0; k < logits_.classes; ++k) {
      row.sides(k, a, b);
      const V d = row.value(phase, a, b) - least;
      undefined = d != d ? d : undefined;
      sum += exp2_of_minus<F>(d, F(1));
    }
    Simd<F>::store(s, log2_of_normal<F>(sum) - least + undefined);
  }

  const UpsampledLogits<T>& logits_;
  F* planes_;
  CellPlanes<T> corners_;
  const F *w0_ = nullptr, *w1_ = nullptr;
  bool finite_ = false;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
