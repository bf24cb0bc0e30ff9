#pragma once
// Logits that kernels upsample as they read them.

#include <cstdint>

#include "cpu/head/bilinear_cells.h"

namespace fastseg::cpu {

// How logits lie in memory: in the type that is computed in, or in 16 bits.
enum class LogitsType { compute, half, bfloat16 };

// Logits (N, C, h, w) of any strides, and the pixels that lie between them. Kernels of T, float or
// double, read them of any type: what comes after is compiled once for all of these.
template <class T>
struct UpsampledLogits {
  using F = T;

  const void* data;
  LogitsType type;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t classes, width;
  const BilinearCells<F>* cells;
  const BilinearRows<F>* rows;

  template <class Stored>
  const Stored* row(int64_t n, int64_t k, int64_t y) const {
    return static_cast<const Stored*>(data) + n * stride_n + k * stride_c + y * stride_h;
  }
};

}  // namespace fastseg::cpu
