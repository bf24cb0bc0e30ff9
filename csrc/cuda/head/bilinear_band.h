#pragma once
// The rows of pixels between two source rows, which a thread makes at once.

#include "common/head/bilinear.h"

namespace fastseg::cuda {

// The first pixel of the axis whose source is `at` or beyond; `out` where there is none.
template <class F>
__device__ inline int64_t first_pixel(const BilinearAxis<F>& axis, int64_t at) {
  if (at <= 0) return 0;
  if (at >= axis.in) return axis.out;
  if (axis.in == axis.out) return at;
  const F shift = axis.align_corners ? F(0) : F(0.5);
  const F guess = axis.scale > F(0) ? (static_cast<F>(at) + shift) / axis.scale - shift : F(0);
  int64_t i = guess < F(0) ? 0 : static_cast<int64_t>(guess);
  if (i > axis.out) i = axis.out;
  while (i > 0 && axis.tap(i - 1).at >= at) --i;  // the guess is off by its rounding
  while (i < axis.out && axis.tap(i).at < at) ++i;
  return i;
}

// Upsampling there is a band for each source row, else for each row of pixels.
template <class F>
__host__ __device__ inline int64_t band_count(const BilinearAxis<F>& axis) {
  return axis.in < axis.out ? axis.in : axis.out;
}

struct Band {
  int64_t begin, end;  // rows of pixels
};

template <class F>
__device__ inline Band band_of(const BilinearAxis<F>& axis, int64_t band) {
  if (axis.in >= axis.out) return {band, band + 1};
  return {first_pixel(axis, band), first_pixel(axis, band + 1)};
}

}  // namespace fastseg::cuda
