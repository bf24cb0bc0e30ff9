#pragma once
// Powers of two and exponentials of vectors.

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// 2^(-x * scale) for x * scale >= 0, to 2 units in the last place and the rounding of x * scale; 0
// where it would be denormal. 2^-t = 2^-k p(t - k) for t = x * scale and k = round(t).
template <class F, class V>
inline V exp2_of_minus(V x, F scale) {
  constexpr bool kFloat = sizeof(F) == 4;
  constexpr F kMagic = kFloat ? F(12582912) : F(6755399441055744);  // 1.5 * 2^mantissa bits
  constexpr F kEnd = kFloat ? F(126) : F(1022);
  constexpr int kMantissa = kFloat ? 23 : 52;
  const V y = x * scale + kMagic;  // the integer k in its low bits
  const V f = x * scale - (y - kMagic);
  V p;
  if constexpr (kFloat) {  // minimax polynomials of 2^-f, |f| <= 1/2
    p = f * F(-0.0013276472632) + F(0.0096755413431);
    p = p * f + F(-0.0555071327186);
    p = p * f + F(0.2402211972371);
    p = p * f + F(-0.6931469670650);
  } else {
    p = f * F(-4.4352827069572771511e-10) + F(7.0741056135081427963e-9);
    p = p * f + F(-1.0178198021671930844e-7);
    p = p * f + F(1.321543308967639918e-6);
    p = p * f + F(-0.000015252733489988525649);
    p = p * f + F(0.00015403530462514432062);
    p = p * f + F(-0.0013333558146789921722);
    p = p * f + F(0.0096181291075883352443);
    p = p * f + F(-0.055504108664819921605);
    p = p * f + F(0.24022650695910156204);
    p = p * f + F(-0.69314718055994533046);
  }
  p = p * f + F(1);
  using I = decltype(x < x);
  const I scaled = bit_cast<I>(p) - (bit_cast<I>(y) << kMantissa);
  return bit_cast<V>(scaled & (x * scale < kEnd));  // false for what overflowed, too
}

// exp(-x) for x >= 0, as exact as that.
template <class F, class V>
inline V exp_of_minus(V x) {
  return exp2_of_minus(x, F(1.44269504088896340736));
}

// exp(-x / 2) for x >= 0, as exact as that.
template <class V, class F>
inline V exp_of_minus_half(V x) {
  return exp2_of_minus(x, F(0.72134752044448170368));
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
