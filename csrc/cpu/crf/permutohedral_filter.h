#pragma once
// Splat and slice, a tile of points at a time, and the filter made of them.

#include <cstdint>

#include "cpu/crf/permutohedral_blur.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/simd/simd_level.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// Values are planes, a channel each, `plane_stride` apart; pointers are to the tile's first point.
template <class T>
struct FilterTile {
  int64_t simplex;                   // d + 1
  int64_t points, channels, stride;  // stride: row_stride(channels)
  int64_t plane_stride;
  const int32_t* slots;
  const T* barycentric;
  int64_t row_count;
  const int32_t* vertices;  // of the tile's rows
};

// rows[slot] = sum over points of weight * value.
#define FASTSEG_SPLAT(T) void splat_tile(const FilterTile<T>& tile, const T* values, T* rows)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SPLAT(T))
#undef FASTSEG_SPLAT

// out = gain * sum over the simplex of weight * the vertex's row.
#define FASTSEG_SLICE(T) \
  void slice_tile(const FilterTile<T>& tile, const T* vertex_rows, T gain, T* out)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SLICE(T))
#undef FASTSEG_SLICE

// The gradient of the weights, (points, d + 1): gain * (grad . value_rows[vertex] + value .
// grad_rows[vertex]), the rows being those of all vertices, blurred.
template <class T>
struct WeightGradient {
  const T* grad;
  const T* values;
  const T* grad_rows;
  const T* value_rows;
  T gain;
  T* out;
};
#define FASTSEG_WEIGHT_GRADIENT(T) \
  void weight_gradient_tile(const FilterTile<T>& tile, const WeightGradient<T>& op)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_WEIGHT_GRADIENT(T))
#undef FASTSEG_WEIGHT_GRADIENT

// values and out (batch, channels, points), contiguous.
template <class T>
void filter(const LatticeView<T>& lattice, const BlurOptions& options, T gain, int64_t channels,
            const T* values, T* out, const TaskRunner& tasks);

// The gradients of filter: of its values, and of the lattice's barycentric weights.
template <class T>
void filter_backward(const LatticeView<T>& lattice, const BlurOptions& options, T gain,
                     int64_t channels, const T* grad, const T* values, T* grad_values,
                     T* grad_barycentric, const TaskRunner& tasks);

}  // namespace fastseg::cpu
