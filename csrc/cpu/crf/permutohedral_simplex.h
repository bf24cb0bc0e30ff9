#pragma once
// The simplices that points lie in, many points at once.

#include <cstdint>

#include "common/crf/permutohedral.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// A wide key holds a vertex whose coordinates do not fit into 64 bits.
using WideKey = unsigned __int128;

// How the vertices of an image are packed into integers: the remainder in the low bits, then each
// quotient, counted from a lower bound, in a field that no step from a vertex leaves.
struct KeyLayout {
  static constexpr int kRemainderBits = 4;
  int d = 0;
  int bits = kRemainderBits;  // of the whole key
  int32_t low[permutohedral::kMaxDimensions] = {};
  int shift[permutohedral::kMaxDimensions] = {};
};

using permutohedral::with_dimensions;

// Points [0, points) of feature planes that are `plane_stride` apart.
template <class T>
struct SimplexPoints {
  int d;
  int64_t points;
  const T* features;
  int64_t plane_stride;
  const T* scale;  // permutohedral::feature_scales
};

// The quotients of the first d coordinates of points' nearest remainder-0 points.
struct QuotientRange {
  int32_t low[permutohedral::kMaxDimensions], high[permutohedral::kMaxDimensions];
  bool bad;  // a feature is not finite or too large; low and high are meaningless
};
#define FASTSEG_QUOTIENTS(T) QuotientRange quotient_range(const SimplexPoints<T>& points)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_QUOTIENTS(T))
#undef FASTSEG_QUOTIENTS

// What the simplices of a block of points are; at most kSimplexBlock.
inline constexpr int64_t kSimplexBlock = 256;
template <class T>
struct Simplices {
  alignas(64) uint64_t keys[kSimplexBlock];      // of vertex 0, if the layout has at most 64 bits
  alignas(64) WideKey wide_keys[kSimplexBlock];  // else
  alignas(64) uint32_t orders[kSimplexBlock];    // rank of coordinate j < d in bits 4 j
  T* barycentric;                                // (points, d + 1)

  const uint64_t* keys_as(uint64_t) const { return keys; }
  const WideKey* keys_as(WideKey) const { return wide_keys; }
};
#define FASTSEG_SIMPLICES(T) \
  void simplices(const SimplexPoints<T>& points, const KeyLayout& layout, Simplices<T>& out)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SIMPLICES(T))
#undef FASTSEG_SIMPLICES

}  // namespace fastseg::cpu
