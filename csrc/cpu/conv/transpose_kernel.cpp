// Blocks of as many rows as a register has lanes, transposed in registers. Bytes: 4 read, 4 written
// an element.

#include <algorithm>

#include "cpu/conv/transpose.h"
#include "cpu/conv/transpose_block.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;

}  // namespace

void transpose_strip(const Transpose& op, int64_t matrix, int64_t strip) {
  const int64_t begin = strip * Transpose::kStrip;
  const int64_t end = std::min(op.rows, begin + Transpose::kStrip);
  const float* in = op.in + matrix * op.rows * op.columns;
  float* out = op.out + matrix * op.rows * op.columns;
  if (end - begin < L || op.columns < L) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < op.columns; ++c) out[c * op.rows + r] = in[r * op.columns + c];
    }
    return;
  }
  // The last block of each axis is moved back, so that it is whole.
  for (int64_t c = 0; c < op.columns; c += L) {
    const int64_t column = std::min(c, op.columns - L);
    for (int64_t r = begin; r < end; r += L) {
      const int64_t row = std::min(r, end - L);
      transpose_block(in + row * op.columns + column, op.columns, out + column * op.rows + row,
                      op.rows);
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
