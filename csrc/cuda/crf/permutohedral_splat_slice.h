#pragma once
// Splat and slice of one pack of channels, as all kernels on a lattice do them:
//   splat: rows[r] = the sum of weight * values[point] over the entries of row r, in their order
//   slice: out[p] = the sum of weight * rows[vertex] over the corners of the simplex of point p
// Whether the values and the rows lie in global or in shared memory is the caller's choice.

#include <cstdint>

#include "cuda/crf/permutohedral_order.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

// Over a row's entries, [starts[row], starts[row + 1]). values: those of point first_point, whose
// pack begins at `channel`; points are `pitch` apart. The pointers come by reference: a kernel then
// reads them from its arguments again, where registers are few.
template <int V, class T>
__device__ inline Pack<T, V> splat_row(const SplatEntry<T>* const& entries,
                                       const int* const& starts, int row, const T* values,
                                       int first_point, int pitch, int channel) {
  const int last = starts[row + 1];
  Pack<T, V> sum{};
#pragma unroll 4
  for (int e = starts[row]; e < last; ++e) {
    const SplatEntry<T> entry = entries[e];
    sum.add(entry.weight, load_pack<V>(values + (entry.point - first_point) * pitch + channel));
  }
  return sum;
}

// corner(c): a SliceEntry. rows: the pack of vertex 0.
template <int V, class T, class Corner>
__device__ inline Pack<T, V> slice_point(int corners, const Corner& corner, const T* rows) {
  Pack<T, V> sum{};
#pragma unroll 3
  for (int c = 0; c < corners; ++c) {
    const SliceEntry<T> entry = corner(c);
    sum.add(entry.weight, load_pack<V>(rows + int64_t{entry.pack} * V));
  }
  return sum;
}

}  // namespace fastseg::cuda
