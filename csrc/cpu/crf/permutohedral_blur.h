#pragma once
// Filtering on a lattice, step by step: the sums of tiles' rows (reduce), the blur, and the two
// together with splat and slice for one channel (for normalisation).
//
// A vertex's channels are a row: `stride` elements, of which those past the channels are padding.
// There are vertices + 1 rows, the last one zero.

#include <cstdint>

#include "common/crf/permutohedral_blur.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/simd/simd_level.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// Elements of a row for that many channels: 1, 2, 4 or a multiple of 8, so that vectors fill it.
inline int64_t row_stride(int64_t channels) {
  return channels <= 2 ? channels : channels <= 4 ? 4 : (channels + 7) / 8 * 8;
}

// One axis of the blur: out = in + side (in[back] + in[forward]), for the vertices [begin, end).
// mean_with, if not null: out = (that + mean_with) / 2. in and out do not overlap.
template <class T>
struct BlurStep {
  const int32_t* back;
  const int32_t* forward;
  int64_t stride;
  T side;
  const T* in;
  const T* mean_with;
  T* out;
};
#define FASTSEG_BLUR(T) void blur_rows(const BlurStep<T>& step, int64_t begin, int64_t end)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_BLUR(T))
#undef FASTSEG_BLUR

// Sums the tiles' rows: out[v] = sum of rows[vertex_rows[k]] over v's segment, in its order; zeros
// for vertices without rows.
template <class T>
struct ReduceRows {
  const int32_t* vertex_rows;
  const int32_t* vertex_starts;
  int64_t stride;
  const T* rows;
  T* out;
};
#define FASTSEG_REDUCE(T) void reduce_rows(const ReduceRows<T>& op, int64_t begin, int64_t end)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_REDUCE(T))
#undef FASTSEG_REDUCE

// Sums of all tiles' rows into `out` (vertices + 1 rows, of which it sets the last to zero).
template <class T>
void reduce(const LatticeView<T>& lattice, int64_t stride, const T* rows, T* out,
            const TaskRunner& tasks);

// Blurs `values` and returns where the result lies (blur_steps). values and the blur_buffers of
// `scratch` have (vertices + 1) * stride elements.
template <class T>
T* blur(const LatticeView<T>& lattice, const BlurOptions& options, int64_t stride, T* values,
        T* const* scratch, const TaskRunner& tasks);

// K 1 (batch, points): the filter of all ones, times gain.
template <class T>
void filter_ones(const LatticeView<T>& lattice, const BlurOptions& options, T gain, T* out,
                 const TaskRunner& tasks);

}  // namespace fastseg::cpu
