#pragma once
// The filter of an image on a lattice that serves one filtering of few channels.
//
// Points of one simplex have the same vertices, and in a photo neighbours often share a simplex. So
// a point's values are added to a row of its simplex, which has all d + 1 vertices side by side,
// and rows are taken apart into vertices once for each simplex, not for each point; and in the same
// way back. A lattice that is kept for many filterings (permutohedral_lattice.h) stores d + 1 slots
// a point instead, which many channels, whose rows fill vectors anyway, make up for.

#include <cstdint>
#include <memory>

#include "common/crf/permutohedral_blur.h"
#include "cpu/simd/simd_level.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// The most channels: more of them fill vectors in rows of vertices, too, and rows of simplices,
// which hold each vertex many times, would leave the caches.
inline constexpr int64_t kMostSimplexChannels = 4;

template <class T>
struct SimplexFilter {
  int d;
  int64_t points, channels;
  const T* features;  // d planes of points, in units of the Gaussian's deviation
  const T* values;    // a plane a channel
  double refine;      // the features' factor
  BlurOptions blur;
  T gain;
  T* out;  // as values
};

// Filters images, one after the other, in memory that it keeps.
template <class T>
class SimplexFilterer {
 public:
  SimplexFilterer();
  ~SimplexFilterer();

  // Results do not depend on the tasks' threads. Throws std::runtime_error for features that make
  // no lattice; messages begin with `name`.
  void run(const SimplexFilter<T>& filter, const TaskRunner& tasks, const char* name);

 private:
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

// Elements of a channel in a row of a simplex: its d + 1 vertices, and padding.
inline constexpr int64_t simplex_lanes(int64_t vertices) {
  return vertices <= 4 ? 4 : vertices <= 8 ? 8 : 16;
}

// Points of a tile, and the simplices that they lie in. A row has simplex_lanes(vertices) elements
// for each channel.
template <class T>
struct SimplexTile {
  int64_t vertices;  // of a simplex: d + 1
  int64_t points, channels;
  int64_t plane_stride;      // of values and results
  const int32_t* simplices;  // (points)
  const T* barycentric;      // (points, vertices), and simplex_lanes(vertices) elements more
};

// rows[simplex] += weight * value, for every point. Padding is overwritten with anything.
#define FASTSEG_SPLAT(T) \
  void splat_to_simplices(const SimplexTile<T>& tile, const T* values, T* rows)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SPLAT(T))
#undef FASTSEG_SPLAT

// out = gain * sum of weight * row over the vertices, whose padding is zero.
#define FASTSEG_SLICE(T) \
  void slice_simplices(const SimplexTile<T>& tile, const T* rows, T gain, T* out)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SLICE(T))
#undef FASTSEG_SLICE

// Simplices, whose rows are as above, and their vertices, whose rows are of
// row_stride(channels) elements.
struct SimplexRows {
  int64_t vertices;  // of a simplex
  int64_t count;     // of simplices
  int64_t channels;
  const int32_t* vertex;  // (count, vertices)
};

// to[vertex] += from[simplex], for every vertex of every simplex.
#define FASTSEG_ADD(T) void add_simplices(const SimplexRows& simplices, const T* from, T* to)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_ADD(T))
#undef FASTSEG_ADD

// to[simplex] = from[vertex], for every vertex of every simplex; zero in padding.
#define FASTSEG_GATHER(T) void gather_simplices(const SimplexRows& simplices, const T* from, T* to)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_GATHER(T))
#undef FASTSEG_GATHER

}  // namespace fastseg::cpu
