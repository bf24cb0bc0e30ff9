#pragma once
// The distance transform on the CPU: its kernels, without torch.
//
// A row is what lies side by side along the axis of the first pass: the elements of a plane. Rows
// are cut into strips, each a task: the rows where a strip's columns meet their first and their
// last zeros are all that other strips must know of it.

#include <cstdint>

#include "common/head/distance_transform.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// The row of a zero that is not there: no distance to it is mistaken for one between rows.
inline constexpr int32_t kNowhere = int32_t{1} << 29;

// The rows [begin, end) of an image; `mask` points to the first of them. U is the unsigned integer
// as wide as a mask's element, which is zero where all of `bits` are.
template <class U>
struct MaskStrip {
  const U* mask;
  U bits;
  int64_t row;  // elements
  int64_t begin, end;
};

// The rows of the first and the last zero of each column in the strip; kNowhere and -kNowhere where
// there is none.
#define FASTSEG_DISTANCE_EXTENTS(U) \
  void distance_extents(const MaskStrip<U>& strip, int32_t* first, int32_t* last)
FASTSEG_DECLARE_KERNEL(template <class U> FASTSEG_DISTANCE_EXTENTS(U))
#undef FASTSEG_DISTANCE_EXTENTS

// The distance of each element to the nearest zero before it in its column. above: the rows of the
// last zeros before the strip.
#define FASTSEG_DISTANCE_BEFORE(U) \
  void distance_before(const MaskStrip<U>& strip, const int32_t* above, int32_t* before)
FASTSEG_DECLARE_KERNEL(template <class U> FASTSEG_DISTANCE_BEFORE(U))
#undef FASTSEG_DISTANCE_BEFORE

// The transform of `rows` rows into `out`. distances: those of distance_before, and in one more row
// those of the row behind the strip to the nearest zero from there on. V is int32_t or double, what
// squared distances are computed in; workspace: as large as distance_workspace says, of any
// content, as the distances have afterwards.
#define FASTSEG_DISTANCE_ROWS(V, T)                                                               \
  void distance_rows(const DistanceTransform& op, int64_t rows, int32_t* distances, V* workspace, \
                     T* out)
FASTSEG_DECLARE_KERNEL(template <class V, class T> FASTSEG_DISTANCE_ROWS(V, T))
#undef FASTSEG_DISTANCE_ROWS

// The most lanes that a vector holds at any SIMD level.
inline constexpr int64_t kMostLanes = 16;

// The elements that a line of n takes in a workspace: vectors that begin in it end in it.
inline int64_t line_pitch(int64_t n) {
  return (n + kMostLanes - 1) / kMostLanes * kMostLanes + kMostLanes;
}

// A plane, lines of as many columns as a vector has lanes, one line of results, the nearest ends.
inline int64_t distance_workspace(const DistanceTransform& op) {
  const int64_t height = op.sizes[1], width = op.sizes[2];
  const int64_t columns = height > 1 ? kMostLanes * line_pitch(height) : 0;
  return height * line_pitch(width) + columns + 2 * line_pitch(std::max(height, width));
}

}  // namespace fastseg::cpu
