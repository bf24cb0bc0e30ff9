#pragma once
// Square roots of the lanes of a vector, correctly rounded: the compilers' vector types have none,
// and std::sqrt of a lane sets errno, which keeps loops from being vectorised.

#include <cmath>

#include "cpu/simd/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastseg::cpu::FASTSEG_SIMD {

template <class F, int L>
Lanes<F, L> square_root(Lanes<F, L> x) {
  using V = Lanes<F, L>;
  constexpr bool kFloat = std::is_same_v<F, float>;
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && kFloat) return bit_cast<V>(_mm512_sqrt_ps(bit_cast<__m512>(x)));
  if constexpr (sizeof(V) == 64 && !kFloat)
    return bit_cast<V>(_mm512_sqrt_pd(bit_cast<__m512d>(x)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && kFloat) return bit_cast<V>(_mm256_sqrt_ps(bit_cast<__m256>(x)));
  if constexpr (sizeof(V) == 32 && !kFloat)
    return bit_cast<V>(_mm256_sqrt_pd(bit_cast<__m256d>(x)));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16 && kFloat) return bit_cast<V>(_mm_sqrt_ps(bit_cast<__m128>(x)));
  if constexpr (sizeof(V) == 16 && !kFloat) return bit_cast<V>(_mm_sqrt_pd(bit_cast<__m128d>(x)));
#endif
  V roots;
  for (int i = 0; i < L; ++i) roots[i] = std::sqrt(x[i]);
  return roots;
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
