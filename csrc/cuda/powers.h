#pragma once
// Powers and logarithms of two, in float by one instruction of the special function unit. Powers
// below the least normal number are zero.

#include <cmath>

namespace fastseg::cuda {

__device__ inline float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return std::exp2(x);
#endif
}
__device__ inline double exp2_of(double x) { return exp2(x); }

// Of a normal number: by the library's function, as it is called once for a pixel and not for a
// class.
__device__ inline float log2_of(float x) { return log2f(x); }
__device__ inline double log2_of(double x) { return log2(x); }

// 0 for an undefined x.
__device__ inline float exp2_or_zero(float x) { return exp2_of(fmaxf(x, -1e4f)); }
__device__ inline double exp2_or_zero(double x) { return exp2_of(fmax(x, -1e4)); }

}  // namespace fastseg::cuda
