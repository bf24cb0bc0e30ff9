#pragma once
// Where the sums of a patch lie among all (upsampled_gradient.h).

#include "cuda/head/patch.h"
#include "cuda/head/upsampled_gradient.h"

namespace fastseg::cuda {

template <class F>
__device__ inline int64_t part_index(const PatchGrid<F>& grid, const GradientParts& parts,
                                     int64_t classes, int64_t patch, int row, int slot, int k) {
  const int64_t at = (patch * 2 + row) * classes * grid.span;
  return at + (parts.channels_last ? slot * classes + k : int64_t{k} * grid.span + slot);
}

}  // namespace fastseg::cuda
