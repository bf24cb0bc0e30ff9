#pragma once
// The softmax of a pixel of upsampled logits by powers of two.
//
// A pixel's logits are means of those at the four corners of its cell, so the largest corner bounds
// them. With x = (bound - logit) * log2(e) >= 0, which interpolation keeps, a class has the
// probability 2^-(x + s) with s = log2(sum over classes of 2^-x). s is small whatever the logits'
// size: the bound is not part of it. The sum vanishes only where all of a pixel's logits lie far
// below the bound; there it is taken beside the least x.

#include <limits>

#include "common/host_device.h"

namespace fastseg {

template <class F>
inline constexpr F kLog2e = F(1.44269504088896340736);
template <class F>
inline constexpr F kLn2 = F(0.69314718055994530942);

template <class F>
inline constexpr F kInfinite = std::numeric_limits<F>::infinity();
template <class F>
inline constexpr F kMostFinite = std::numeric_limits<F>::max();

// Below this the largest terms of a sum come close to the least power of two that a number holds.
template <class F>
inline constexpr F kVanishes = sizeof(F) == 4 ? F(1e-30) : F(1e-280);

// s of a pixel that has no part in a loss: all its probabilities vanish.
template <class F>
inline constexpr F kNoPixel = kMostFinite<F> / 4;

// Logits beyond it count as it: masks may be the least number of all, whose distance from another
// logit would overflow. What is infinite or undefined stays so.
template <class F>
inline constexpr F kLargestLogit = kMostFinite<F> / 16;

template <class F>
FASTSEG_HOST_DEVICE F within_range(F logit) {
  if (logit > kLargestLogit<F> && logit <= kMostFinite<F>) return kLargestLogit<F>;
  if (logit < -kLargestLogit<F> && logit >= -kMostFinite<F>) return -kLargestLogit<F>;
  return logit;
}

}  // namespace fastseg
