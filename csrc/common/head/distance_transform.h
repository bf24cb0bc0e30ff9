#pragma once
// The exact Euclidean distance transform in numbers: what the CPU and the CUDA kernels agree on.
//
//   d2_i = min over zeros j of sum_a w_a (i_a - j_a)^2
//
// Axis by axis: along the first one, the distance to the nearest zero of each line; along each
// other, out_i = min_j w (i - j)^2 + in_j, the lower envelope of parabolas (Felzenszwalb and
// Huttenlocher, "Distance Transforms of Sampled Functions", Theory of Computing 2012). Where all
// axes have one spacing squared distances are integers: int32 holds them, exactly. In double the
// spacings are divided by a power of two, which costs no bit and lets no square overflow.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/host_device.h"

namespace fastseg {

// The squared distance of what no zero has been met for. No distance in integers reaches it, and it
// may grow by any such distance without overflow, also beyond the end of a line, where vectors
// read.
template <class V>
struct FarAway;
template <>
struct FarAway<int32_t> {
  static constexpr int32_t kValue = int32_t{1} << 30;
};
template <>
struct FarAway<double> {
  static constexpr double kValue = std::numeric_limits<double>::infinity();
};

struct DistanceTransform {
  int64_t images;
  std::array<int64_t, 3> sizes;  // the axis of the first pass, then height and width of a plane
  std::array<double, 3> weights;
  double scale;  // distances are scale * sqrt(d2)
  bool in_integers;
  bool squared;

  int64_t plane() const { return sizes[1] * sizes[2]; }
  int64_t volume() const { return sizes[0] * plane(); }
};

// axes: one to three; sizes and spacing: of each. An image of two axes is a volume whose planes
// have one row, so that its first pass, too, takes all columns at once.
inline DistanceTransform distance_transform(int64_t images, int axes, const int64_t* sizes,
                                            const double* spacing, bool squared) {
  DistanceTransform op{images, {1, 1, 1}, {1, 1, 1}, 1, true, squared};
  double largest = spacing[0];
  for (int a = 1; a < axes; ++a) largest = std::max(largest, spacing[a]);
  constexpr int kBeyond = 32;
  double reach = 0;
  for (int a = 0; a < axes; ++a) {
    op.in_integers = op.in_integers && spacing[a] == largest;
    const double steps = static_cast<double>(sizes[a] + kBeyond);
    reach += steps * steps;
  }
  op.in_integers = op.in_integers && reach < FarAway<int32_t>::kValue;
  const int exponent = std::ilogb(largest);
  op.scale = op.in_integers ? largest : std::ldexp(1.0, exponent);
  for (int a = 0; a < axes; ++a) {
    const int to = axes == 2 && a == 0 ? 0 : 3 - axes + a;
    op.sizes[to] = sizes[a];
    const double step = op.in_integers ? 1.0 : std::ldexp(spacing[a], -exponent);
    op.weights[to] = step * step;
  }
  return op;
}

}  // namespace fastseg
