#pragma once
// The class of pixels of bilinearly upsampled logits.
//
// A thread makes a column of pixels in a band of rows between two source rows, kRows at a time: for
// each class it reads four logits, which its neighbours read, too, interpolates along the row
// twice, and keeps the best value and id of each row in registers. Instructions for a pixel and a
// class: interpolation 2, comparison 2, choice 2, and 1 / kRows of 4 loads and 4 more.

#include <cstdint>

#include "cuda/arithmetic.h"
#include "cuda/head/bilinear_band.h"
#include "cuda/head/logits.h"

namespace fastseg::cuda {

// Rows of pixels that a thread makes at once, at most.
template <class T>
inline constexpr int kClassRows = sizeof(T) == 8 ? 4 : 8;

template <class T, int kRows>
class PixelClasses {
 public:
  using F = Compute<T>;

  // Of the rows from y on, those beyond the last, `end` - 1, being its, in a column of image n.
  __device__ PixelClasses(const UpsampledLogits& z, const BilinearAxis<F>& rows,
                          const BilinearTap<F>& column, int64_t n, int64_t y, int64_t end)
      : z_(z), column_(column) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const BilinearTap<F> row = rows.tap(y + r < end ? y + r : end - 1);
      w0_[r] = row.w0, w1_[r] = row.w1;
    }
    const BilinearTap<F> row = rows.tap(y);
    const T* logits = static_cast<const T*>(z.data) + n * z.stride_n + column.at * z.stride_w;
    above_ = logits + row.at * z.stride_h;
    below_ = logits + row.next * z.stride_h;
  }

  // The first of the largest ones; an undefined one before all others.
  __device__ void find() {
    for_classes([&](int k, int r, F v) {
      if (k == 0 || (!(v <= best_[r]) && best_[r] == best_[r])) best_[r] = v, id_[r] = k;
    });
  }

  __device__ int id(int r) const { return id_[r]; }

  // The sums of exp(logit - best).
  __device__ void add_up(F (&sum)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = 0;
    for_classes([&](int, int r, F v) { sum[r] += exp(v - best_[r]); });
  }

 private:
  // Calls body(class, row, value).
  template <class Body>
  __device__ void for_classes(const Body& body) const {
    const int64_t right = (column_.next - column_.at) * z_.stride_w;
    const auto between = [&](const T* p) {
      return column_.w0 * to_compute(p[0]) + column_.w1 * to_compute(p[right]);
    };
    for (int k = 0; k < z_.classes; ++k) {
      const F a = between(above_ + k * z_.stride_c), b = between(below_ + k * z_.stride_c);
#pragma unroll
      for (int r = 0; r < kRows; ++r) body(k, r, w0_[r] * a + w1_[r] * b);
    }
  }

  const UpsampledLogits& z_;
  const BilinearTap<F>& column_;
  const T *above_, *below_;
  F w0_[kRows], w1_[kRows], best_[kRows];
  int id_[kRows];
};

}  // namespace fastseg::cuda
