#pragma once
// What multiplies the result of a lattice's blur: LatticeQuality.gain of
// fastseg/_core/lattice_quality.py.

#include <cmath>

#include "common/crf/permutohedral_blur.h"

namespace fastseg {

// keeps_integral: the filter's integral is the Gaussian's; else the gain is Kraehenbuehl and
// Koltun's.
inline double lattice_gain(int d, bool keeps_integral, double refine, const BlurOptions& blur) {
  if (!keeps_integral) return 1 / (1 + std::pow(2.0, -d));
  // The lattice has one vertex in sqrt(3/2)^d / sqrt(d + 1) of unrefined feature space, and each
  // pass multiplies the sum by 1 + 2 side along each of d + 1 axes.
  const double vertex = std::pow(1.5, 0.5 * d) / std::sqrt(d + 1.0) / std::pow(refine, d);
  const double tau = 6.283185307179586;
  return std::pow(tau, 0.5 * d) / (vertex * std::pow(1 + 2 * blur.side, blur.passes * (d + 1)));
}

}  // namespace fastseg
