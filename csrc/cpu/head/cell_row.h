#pragma once
// A block of cells in one row of pixels: the values of a class at any phase.

#include "cpu/head/cell_planes.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class F>
using Vector = typename Simd<F>::Value;
template <class F>
using Codes = typename Simd<F>::Mask;

template <class F>
struct CellRow {
  const F* planes;   // [class][kCorners][lane]
  F y0, y1;          // weights of the two source rows
  const F *w0, *w1;  // [phase][lane]: weights of the two columns

  // The values of a class at both sides of the cells.
  void sides(int64_t k, Vector<F>& a, Vector<F>& b) const {
    constexpr int L = kLanes<F>;
    const F* p = planes + k * kCorners * L;
    a = y0 * Simd<F>::load(p) + y1 * Simd<F>::load(p + 2 * L);
    b = y0 * Simd<F>::load(p + L) + y1 * Simd<F>::load(p + 3 * L);
  }

  Vector<F> value(int phase, Vector<F> a, Vector<F> b) const {
    constexpr int L = kLanes<F>;
    return Simd<F>::load(w0 + phase * L) * a + Simd<F>::load(w1 + phase * L) * b;
  }
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
