#pragma once
// A square block of floats, transposed in registers by log2(lanes) rounds of interleaving the first
// half of the rows with the second.

#include <utility>

#include "common/host_device.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// From the elements First.. of a and b: a, b, a, b, ...
template <int First, int... K>
Simd<float>::Value interleave(Simd<float>::Value a, Simd<float>::Value b,
                              std::integer_sequence<int, K...>) {
  constexpr int L = kLanes<float>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, ((First + K) / 2 + (K % 2) * L)...);
#else
  return __builtin_shuffle(a, b, Simd<float>::Mask{((First + K) / 2 + (K % 2) * L)...});
#endif
}

// out[j * out_step + i] = in[i * in_step + j] for i, j < the lanes of a register.
inline void transpose_block(const float* in, int64_t in_step, float* out, int64_t out_step) {
  using S = Simd<float>;
  constexpr int L = kLanes<float>;
  constexpr auto kSequence = std::make_integer_sequence<int, L>{};
  S::Value rows[L], next[L];
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

}  // namespace fastseg::cpu::FASTSEG_SIMD
