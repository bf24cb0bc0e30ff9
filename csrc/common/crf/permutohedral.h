#pragma once
// The geometry of the permutohedral lattice, once for CPU and CUDA.
//
// Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. A
// feature f in R^D is elevated to the plane of R^(D+1) whose coordinates sum to zero; the plane is
// tiled by simplices whose D + 1 vertices are integer points, vertex r having all coordinates
// congruent to r modulo D + 1.
//
// A vertex is named by its remainder r in 0..D and the quotients q_j of its coordinates
// (D + 1) q_j + r, j < D (the last coordinate follows from the sum). With q and rank of an
// enclosing simplex:
//   vertex r:                   (q_j - [rank_j > D - r], r)
//   one step along axis j:      +1 on all coordinates, -(D + 1) on coordinate j more:
//                               r < D: (q - e_j, r + 1);   r = D: (q + 1 - e_j, 0)
//   (e_D = 0), and back in the same way. Packed into one integer, each is one addition.
//
// V is a scalar (CUDA: one point a thread) or a SIMD vector of GCC's (CPU: one point a lane), S its
// scalar. Each operation is rounded by itself, in the order of Kraehenbuehl's program, so that the
// simplex of a point is the one that pydensecrf finds: no product may be fused with a sum. CUDA
// code gets that from intrinsics; a CPU source that includes this file turns contraction off.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/host_device.h"
#include "common/rounding.h"

namespace fastseg::permutohedral {

inline constexpr int kMaxDimensions = 8;

// Quotients below this are found and ranked rightly, whatever the rounding of the elevation.
template <class S>
inline constexpr S kQuotientLimit = std::is_same_v<S, double> ? S(1 << 29) : S(1 << 20);

// Kraehenbuehl's program fills its last vector of four points with features of zero; the vertices
// of their simplex exist, without a point's mass, and carry blur. Lattices without dilation have
// them too: `origin_pads(points)` says whether.
FASTSEG_HOST_DEVICE bool origin_pads(int64_t points, int64_t dilation) {
  return dilation == 0 && points % 4 != 0;
}

// An image's points are cut into `tiles` tiles of this many (the last one may be shorter).
FASTSEG_HOST_DEVICE int64_t tile_points(int64_t points, int64_t tiles) {
  if (tiles <= 1) return points;
  return ((points + tiles - 1) / tiles + 63) / 64 * 64;
}

// The factors of the features: the lattice is scaled so that the blur's standard deviation is one
// unit of feature space.
template <class S>
inline void feature_scales(int dimensions, double refine, S* scale) {
  const S deviation = static_cast<S>(std::sqrt(2.0 / 3.0) * (dimensions + 1));
  for (int i = 0; i < dimensions; ++i) {
    scale[i] = static_cast<S>(1.0 / std::sqrt(double((i + 2) * (i + 1))) * deviation * refine);
  }
}

template <class V, class S>
FASTSEG_HOST_DEVICE V constant(S x) {
  return x - V{};
}

// To the nearest integer, ties to even, for |x| up to 2^22.
template <class V, class S>
FASTSEG_HOST_DEVICE V nearest(V x) {
  const V magic = constant<V, S>(std::is_same_v<S, double> ? S(6755399441055744.0) : S(12582912.0));
  return plus(plus(x, magic), -magic);
}

// y = E f, (D + 1) coordinates.
template <int D, class V, class S>
FASTSEG_HOST_DEVICE void elevate(const V* feature, const S* scale, V* elevated) {
  V sum = V{};
  FASTSEG_UNROLL
  for (int j = D; j > 0; --j) {
    const V scaled = times(feature[j - 1], constant<V, S>(scale[j - 1]));
    elevated[j] = plus(sum, -times(constant<V, S>(S(j)), scaled));
    sum = plus(sum, scaled);
  }
  elevated[0] = sum;
}

// Quotients of the nearest point with remainder 0, which need not lie in the plane.
template <int D, class V, class S>
FASTSEG_HOST_DEVICE void round_to_quotients(const V* elevated, V* quotient) {
  const V inverse = constant<V, S>(S(1) / S(D + 1));
  FASTSEG_UNROLL
  for (int i = 0; i <= D; ++i) quotient[i] = nearest<V, S>(times(elevated[i], inverse));
}

// Moves the quotients into the plane and finds the order of the point's coordinates relative to
// that vertex: rank_i in 0..D, 0 the largest. barycentric[r] is the weight of vertex r.
template <int D, class V, class S>
FASTSEG_HOST_DEVICE void enclose(const V* elevated, V* quotient, V* rank, V* barycentric) {
  const V zero = V{}, one = constant<V, S>(S(1)), size = constant<V, S>(S(D + 1));
  V offset[D + 1];
  V sum = V{};
  FASTSEG_UNROLL
  for (int i = 0; i <= D; ++i) {
    offset[i] = plus(elevated[i], -times(quotient[i], size));
    sum = plus(sum, quotient[i]);
    rank[i] = zero;
  }
  FASTSEG_UNROLL
  for (int i = 0; i < D; ++i) {
    FASTSEG_UNROLL
    for (int j = i + 1; j <= D; ++j) {
      const V less = offset[i] < offset[j] ? one : zero;
      rank[i] = plus(rank[i], less);
      rank[j] = plus(rank[j], plus(one, -less));
    }
  }
  const V inverse = constant<V, S>(S(1) / S(D + 1));
  V sorted[D + 1];  // by rank
  FASTSEG_UNROLL
  for (int i = 0; i <= D; ++i) sorted[i] = zero;
  FASTSEG_UNROLL
  for (int i = 0; i <= D; ++i) {
    const V moved = plus(rank[i], sum);
    const V step = moved < zero ? one : (moved >= size ? -one : zero);
    rank[i] = plus(moved, times(step, size));
    quotient[i] = plus(quotient[i], step);
    const V height = times(plus(elevated[i], -times(quotient[i], size)), inverse);
    FASTSEG_UNROLL
    for (int r = 0; r <= D; ++r) {
      sorted[r] = rank[i] == constant<V, S>(S(r)) ? height : sorted[r];
    }
  }
  barycentric[0] = plus(sorted[D], plus(one, -sorted[0]));
  FASTSEG_UNROLL
  for (int r = 1; r <= D; ++r) barycentric[r] = plus(sorted[D - r], -sorted[D - r + 1]);
}

// Calls body.operator()<D>() for D = d.
template <class Body>
inline auto with_dimensions(int d, const Body& body) {
  switch (d) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
    case 5:
      return body.template operator()<5>();
    case 6:
      return body.template operator()<6>();
    case 7:
      return body.template operator()<7>();
    default:
      return body.template operator()<8>();
  }
}

}  // namespace fastseg::permutohedral
