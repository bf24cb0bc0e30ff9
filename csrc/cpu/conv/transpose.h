#pragma once
// Matrices of floats transposed: what turns a contiguous image into a channels_last one and back.

#include <cstdint>

#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// `count` matrices (rows, columns), one after another, to (columns, rows).
struct Transpose {
  const float* in;
  float* out;
  int64_t count, rows, columns;

  // Strips of one matrix; a strip is a task.
  static constexpr int64_t kStrip = 64;
  int64_t strips() const { return (rows + kStrip - 1) / kStrip; }
};

#define FASTSEG_TRANSPOSE_STRIP \
  void transpose_strip(const Transpose& op, int64_t matrix, int64_t strip)
FASTSEG_DECLARE_KERNEL(FASTSEG_TRANSPOSE_STRIP)
#undef FASTSEG_TRANSPOSE_STRIP

}  // namespace fastseg::cpu
