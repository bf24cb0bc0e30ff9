#pragma once
// What pixel-adaptive refinement computes with on every device: its two published forms, its
// neighbours, and the weights that depend on nothing but the dilations.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/host_device.h"

namespace fastseg {

enum class Affinity { kPar, kPamr };

inline constexpr double kDeviationFloor = 1e-8;  // added to deviations, which may be 0
inline constexpr double kParWidth = 0.3;         // of the weights, in deviations
inline constexpr double kPamrWidth = 0.1;
inline constexpr double kParPositions =
    0.01;  // the sum of the weights of the neighbours' distances

// The neighbours around a pixel in raster order.
inline constexpr int kDirections = 8;
FASTSEG_HOST_DEVICE int row_of(int direction) { return direction < 3 ? -1 : direction < 5 ? 0 : 1; }
FASTSEG_HOST_DEVICE int column_of(int direction) {
  return (direction < 4 ? direction : direction + 1) % 3 - 1;
}

// What a pixel reads along one axis of `size` > 0 elements: as all pixels beyond the edge are the
// last one, no dilation reaches further than that.
inline int64_t reach_within(int64_t dilation, int64_t size) { return std::min(dilation, size - 1); }

// Of each neighbour, dilation after dilation: the softmax of -(d / (s + 1e-8) / 0.3)^2 over the
// neighbours' distances d with deviation s, times 0.01.
inline std::vector<double> position_weights(const std::vector<int64_t>& dilations) {
  std::vector<double> weights;
  for (const int64_t dilation : dilations) {
    for (int k = 0; k < kDirections; ++k) {
      weights.push_back(static_cast<double>(dilation) * std::hypot(row_of(k), column_of(k)));
    }
  }
  const double count = static_cast<double>(weights.size());
  double mean = 0, squares = 0, sum = 0;
  for (const double d : weights) mean += d / count;
  for (const double d : weights) squares += (d - mean) * (d - mean);
  const double width = (std::sqrt(squares / (count - 1)) + kDeviationFloor) * kParWidth;
  const double nearest = *std::min_element(weights.begin(), weights.end()) / width;
  for (double& d : weights) {
    d = std::exp(nearest * nearest - d / width * (d / width));
    sum += d;
  }
  for (double& d : weights) d *= kParPositions / sum;
  return weights;
}

}  // namespace fastseg
