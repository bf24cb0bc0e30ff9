#pragma once
// Logits that kernels upsample as they read them.

#include <cstdint>
#include <type_traits>

#include "cpu/head/bilinear_cells.h"

namespace fastseg::cpu {

// Logits (N, C, h, w) of any strides, and the pixels that lie between them.
template <class T>
struct UpsampledLogits {
  using F = std::conditional_t<std::is_same_v<T, double>, double, float>;

  const T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t classes, width;
  const BilinearCells<F>* cells;
  const BilinearRows<F>* rows;

  const T* row(int64_t n, int64_t k, int64_t y) const {
    return data + n * stride_n + k * stride_c + y * stride_h;
  }
};

}  // namespace fastseg::cpu
