#pragma once
// The taps of a Gaussian on the pixel grid, and of its derivative by the bandwidth.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/host_device.h"

namespace fastseg {

// How many sigma the taps reach: those below eight epsilons of T are left out, whose sum is below
// one. Taps of the derivative carry a factor of (k / sigma)^2, so they reach further.
template <class T>
double gaussian_reach(bool derivative) {
  const double smallest = 8.0 * std::numeric_limits<T>::epsilon() / (derivative ? 64.0 : 1.0);
  return std::sqrt(-2.0 * std::log(smallest));
}

// The last tap on an axis of `size` > 0.
FASTSEG_HOST_DEVICE int64_t gaussian_radius(double sigma, double reach, int64_t size) {
  const double radius = sigma * reach;
  return radius < static_cast<double>(size - 1) ? static_cast<int64_t>(radius) : size - 1;
}

// exp(-k^2 / (2 sigma^2)), or that times k^2 / sigma^3: both are even in k.
FASTSEG_HOST_DEVICE double gaussian_tap(double k, double sigma, bool derivative) {
  const double z = k / sigma;
  return exp(-0.5 * z * z) * (derivative ? z * z / sigma : 1.0);
}

// One side, the centre first.
template <class T>
std::vector<T> gaussian_taps(double sigma, int64_t size, bool derivative) {
  if (size == 0) return {T{1}};
  const double reach = gaussian_reach<T>(derivative);
  std::vector<T> taps(gaussian_radius(sigma, reach, size) + 1);
  for (size_t k = 0; k < taps.size(); ++k) {
    taps[k] = static_cast<T>(gaussian_tap(static_cast<double>(k), sigma, derivative));
  }
  return taps;
}

}  // namespace fastseg
