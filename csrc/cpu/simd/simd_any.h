#pragma once
// What the lanes of a register have in common.

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// Whether a comparison holds in any of the register's lanes.
template <class F>
bool any_lane(typename Simd<F>::Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(bit_cast<__m256i>(mask)) != 0;
#else
  const auto words = bit_cast<Lanes<int64_t, sizeof(mask) / 8> >(mask);
  int64_t all = 0;
  for (size_t i = 0; i < sizeof(mask) / 8; ++i) all |= words[i];
  return all != 0;
#endif
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
