#pragma once
// The epilogue of a convolution on a vector of sums:
//   const auto terms = channel_terms<T, L>(epilogue, c);  // lanes are the channels c, c + 1, ...
//   const auto terms = pixel_terms<T, L>(epilogue, c);    // lanes are pixels of the channel c
//   Simd<T, L>::store(y + at, finish<T, L, smooth>(epilogue, terms, sum, at));
// Terms are loaded once for all pixels of the channels, respectively of the row.

#include <array>
#include <cstdint>

#include "common/conv/activation.h"
#include "common/host_device.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class T, int L>
struct EpilogueTerms {
  typename Simd<T, L>::Value scale, shift;
};

template <class T, int L>
EpilogueTerms<T, L> channel_terms(const Conv2dEpilogue<T>& epilogue, int64_t channel) {
  using S = Simd<Compute<T>, L>;
  return {epilogue.scale ? S::load(epilogue.scale + channel) : S::fill(1),
          epilogue.shift ? S::load(epilogue.shift + channel) : S::fill(0)};
}

template <class T, int L>
EpilogueTerms<T, L> pixel_terms(const Conv2dEpilogue<T>& epilogue, int64_t channel) {
  using S = Simd<Compute<T>, L>;
  return {S::fill(epilogue.scale ? epilogue.scale[channel] : 1),
          S::fill(epilogue.shift ? epilogue.shift[channel] : 0)};
}

// 1 / 0!, 1 / 1!, ..., 1 / N!
template <class F, int N>
constexpr std::array<F, N + 1> inverse_factorials() {
  std::array<F, N + 1> out{};
  double factorial = 1;
  for (int i = 0; i <= N; ++i) {
    if (i > 0) factorial *= i;
    out[i] = static_cast<F>(1 / factorial);
  }
  return out;
}

// e^x, to 1.5 units in the last place; overflows to infinity, NaN stays NaN. With k = round(x /
// ln 2): e^x = 2^k e^f, |f| <= ln(2) / 2, by Taylor's series.
template <class F, int L>
[[gnu::always_inline]] inline Lanes<F, L> exponential(Lanes<F, L> x) {
  using S = Simd<F, L>;
  using V = typename S::Value;
  constexpr bool kFloat = sizeof(F) == 4;
  constexpr int kTerms = kFloat ? 7 : 13, kMantissa = kFloat ? 23 : 52, kBias = kFloat ? 127 : 1023;
  constexpr F kMagic = kFloat ? F(12582912) : F(6755399441055744);  // 1.5 * 2^kMantissa
  // The high part of ln 2 has so few bits that its products with k are exact.
  constexpr F kHigh = kFloat ? F(0.693359375) : F(6.93145751953125e-1);
  constexpr F kLow = kFloat ? F(-2.12194440054690583e-4) : F(1.42860682030941723212e-6);
  constexpr F kEnd = kFloat ? F(89) : F(710);  // e^kEnd overflows, e^-kEnd is denormal
  x = x > kEnd ? S::fill(kEnd) : x;
  x = x < -kEnd ? S::fill(-kEnd) : x;
  const V shifted = x * F(1.44269504088896340736) + kMagic;  // the integer k in its low bits
  const V k = shifted - kMagic;
  const V f = x - k * kHigh - k * kLow;
  constexpr std::array<F, kTerms + 1> kInverseFactorials = inverse_factorials<F, kTerms>();
  V p = S::fill(kInverseFactorials[kTerms]);
  FASTSEG_UNROLL
  for (int i = kTerms - 1; i >= 0; --i) p = p * f + kInverseFactorials[i];
  // In two factors: 2^k itself may be infinite where the product is not.
  using M = typename S::Mask;
  const M integer = bit_cast<M>(shifted) - bit_cast<M>(S::fill(kMagic));
  const M half = integer >> 1;
  const V first = bit_cast<V>((half + kBias) << kMantissa);
  return p * first * bit_cast<V>((integer - half + kBias) << kMantissa);
}

template <class F, int L>
[[gnu::always_inline]] inline Lanes<F, L> activate_smooth(Activation activation, Lanes<F, L> v) {
  if (activation == Activation::silu) return v / (F(1) + exponential<F, L>(-v));
  return hardswish<F>(v);
}

// The outputs of L sums; `at` is the place of the first one in the output. `smooth` is
// is_smooth(activation): a kernel that keeps its registers full is compiled for either, since the
// exponential needs many.
template <class T, int L, bool smooth>
[[gnu::always_inline]] inline typename Simd<T, L>::Value finish(const Conv2dEpilogue<T>& epilogue,
                                                                const EpilogueTerms<T, L>& terms,
                                                                typename Simd<T, L>::Value sum,
                                                                int64_t at) {
  using F = Compute<T>;
  auto v = sum * terms.scale + terms.shift;
  if (epilogue.residual) v += Simd<T, L>::load(epilogue.residual + at);
  if constexpr (smooth) return activate_smooth<F, L>(epilogue.activation, v);
  return activate_linear<F>(epilogue.activation, v);
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
