#pragma once
// The gradient of logits that were upsampled: each sums what the pixels of the bands on both sides
// of its row give it. A band's sums are a buffer of its own, [source row][class][column], which one
// task writes in a fixed order; a second pass adds the buffers, from the top down.

#include <algorithm>
#include <cstdint>

#include "cpu/head/cell_row.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// Adds a row's gradients of both sides of its cells to those of the cells' corners.
template <class F, class V>
void add_row(const CellRow<F>& row, V left, V right, V* corners) {
  corners[0] += row.y0 * left;
  corners[1] += row.y0 * right;
  corners[2] += row.y1 * left;
  corners[3] += row.y1 * right;
}

template <class F>
class BandSums {
 public:
  using V = typename Simd<F>::Value;
  static constexpr int L = kLanes<F>;

  BandSums(const BilinearCells<F>& cells, int64_t classes, int64_t width, F* sums)
      : cells_(cells), width_(width), row_(classes * width), sums_(sums) {
    std::fill_n(sums_, 2 * row_, F(0));
  }

  void start_block(int64_t block) {
    at_ = cells_.at.data() + block * L;
    next_ = cells_.next.data() + block * L;
    side_by_side_ = true;
    for (int i = 0; i < L; ++i) {
      side_by_side_ &= at_[i] == at_[0] + i && next_[i] == at_[i] + 1;
    }
  }

  // Adds to class k what its corners got: columns `at` and `next` of row `at`, then of row `next`.
  void add(int64_t k, const V* corners) {
    for (int row = 0; row < 2; ++row) {
      F* to = sums_ + row * row_ + k * width_;
      const V a = corners[2 * row], b = corners[2 * row + 1];
      if (side_by_side_) {
        F *left = to + at_[0], *right = left + 1;
        write(left, read<V>(left) + a);
        write(right, read<V>(right) + b);
      } else {
        for (int i = 0; i < L; ++i) to[at_[i]] += a[i], to[next_[i]] += b[i];
      }
    }
  }

 private:
  const BilinearCells<F>& cells_;
  const int64_t width_, row_;
  F* sums_;
  const int32_t *at_ = nullptr, *next_ = nullptr;
  bool side_by_side_ = false;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
