#pragma once
// Logarithms of vectors.

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// log2(x) of positive normal numbers, to 2 units in the last place of the result or, near 1, of 1.
// x = 2^k m with m in [sqrt(1/2), sqrt(2)), and ln(m) = 2 atanh(t) = 2 (t + t^3 / 3 + ...) for
// t = (m - 1) / (m + 1), |t| < 0.172.
template <class F, class V>
inline V log2_of_normal(V x) {
  using I = decltype(x < x);
  using Int = std::conditional_t<sizeof(F) == 4, int32_t, int64_t>;
  constexpr bool kFloat = sizeof(F) == 4;
  constexpr int kMantissa = kFloat ? 23 : 52;
  constexpr Int kRootHalf = kFloat ? Int(0x3f3504f3) : Int(0x3fe6a09e667f3bcd);  // sqrt(1/2)
  constexpr int kTerms = kFloat ? 5 : 11;
  const I bits = bit_cast<I>(x);
  const I exponent = (bits - kRootHalf) >> kMantissa;
  const V m = bit_cast<V>(bits - (exponent << kMantissa));
  const V t = (m - F(1)) / (m + F(1)), square = t * t;
  constexpr F kScale = F(2) * F(1.44269504088896340736);
  V sum = square * (kScale / F(2 * kTerms + 1)) + kScale / F(2 * kTerms - 1);
  for (int i = kTerms - 1; i > 0; --i) sum = sum * square + kScale / F(2 * i - 1);
  return __builtin_convertvector(exponent, V) + t * sum;
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
