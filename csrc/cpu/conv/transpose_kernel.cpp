// Blocks of as many rows as a register has lanes, transposed in registers by log2(lanes) rounds of
// interleaving the first half of the rows with the second. Bytes: 4 read, 4 written an element.

#include <algorithm>
#include <utility>

#include "common/host_device.h"
#include "cpu/conv/transpose.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;
using S = Simd<float>;
using V = S::Value;

// From the elements First.. of a and b: a, b, a, b, ...
template <int First, int... K>
V interleave(V a, V b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((First + K) / 2 + (K % 2) * L)...);
#else
  return __builtin_shuffle(a, b, S::Mask{((First + K) / 2 + (K % 2) * L)...});
#endif
}

void transpose_block(const float* in, int64_t in_step, float* out, int64_t out_step) {
  constexpr auto kSequence = std::make_integer_sequence<int, L>{};
  V rows[L], next[L];
  FASTSEG_UNROLL
  for (int i = 0; i < L; ++i) rows[i] = S::load(in + i * in_step);
  FASTSEG_UNROLL
  for (int round = 1; round < L; round *= 2) {
    FASTSEG_UNROLL
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + L / 2], kSequence);
      next[2 * i + 1] = interleave<L>(rows[i], rows[i + L / 2], kSequence);
    }
    FASTSEG_UNROLL
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
  FASTSEG_UNROLL
  for (int i = 0; i < L; ++i) S::store(out + i * out_step, rows[i]);
}

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
