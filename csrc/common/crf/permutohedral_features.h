#pragma once
// Why features do not make a lattice, in words, for the CPU and CUDA.

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastseg::permutohedral {

// Throws the error for `points` points, of which at least one is not finite or too large.
template <class T>
[[noreturn]] void refuse_features(const std::string& op, const T* features, int d, int64_t points,
                                  int64_t plane_stride) {
  int worst = 0;
  T largest = 0;
  std::ostringstream message;
  message << op << ": features must be ";
  for (int j = 0; j < d; ++j) {
    for (int64_t i = 0; i < points; ++i) {
      const T x = features[j * plane_stride + i];
      if (!std::isfinite(x)) {
        message << "finite, got " << x << " in dimension " << j;
        throw std::runtime_error(message.str());
      }
      if (std::abs(x) > largest) largest = std::abs(x), worst = j;
    }
  }
  message << "smaller, got up to " << largest << " in dimension " << worst
          << ", too many lattice steps for their dtype: use a larger bandwidth or float64";
  throw std::runtime_error(message.str());
}

}  // namespace fastseg::permutohedral
