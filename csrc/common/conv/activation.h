#pragma once
// Activations of a value, or of each value of a vector V of them, in F.

#include "common/conv/conv2d_epilogue.h"
#include "common/host_device.h"

namespace fastseg {

// v * clip(v + 3, 0, 6) / 6.
template <class F, class V>
[[gnu::always_inline]] FASTSEG_HOST_DEVICE V hardswish(V v) {
  const V zero = {}, gate = v + F(3);
  const V clipped = gate < zero ? zero : gate;
  return v * ((clipped > F(6) ? zero + F(6) : clipped) * F(1.0 / 6));  // v * 6 may overflow
}

// Those that are not smooth. NaN stays NaN: comparisons are such that it takes the branch that
// keeps it.
template <class F, class V>
[[gnu::always_inline]] FASTSEG_HOST_DEVICE V activate_linear(Activation activation, V v) {
  const V zero = {};
  if (activation == Activation::none) return v;
  if (activation == Activation::leaky_relu) return v < zero ? v * F(kLeakyReluSlope) : v;
  v = v < zero ? zero : v;
  if (activation == Activation::relu) return v;
  return v > F(6) ? zero + F(6) : v;
}

}  // namespace fastseg
