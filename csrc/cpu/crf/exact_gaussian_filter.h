#pragma once
// The exact Gaussian filter: what its kernels take.

#include <cstdint>

#include "common/crf/exact_gaussian_blocks.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

using exact_gaussian::kBlock;
using exact_gaussian::kLeaf;

// One image, its points in the order of a k-d tree and padded to whole blocks: the features of
// padding are the last point's, its rows are 0. All pointers are dense.
template <class T>
struct ExactGaussian {
  int64_t dims;
  int64_t channels;
  int64_t points;
  int64_t padded;
  T limit;               // the squared distance above which a pair of boxes is left out
  const int32_t* order;  // (padded): where each point lies in the image
  const T* features;     // (padded, dims)
  const T* lower;        // (dims, padded / kLeaf): the corners of the leaves' boxes
  const T* upper;
  const T* rows;     // (padded, channels): the values; the backward's: values, then gradients
  T* out;            // (channels, points), in the image's order; the backward's: grad_values
  T* grad_features;  // (dims, points), in the image's order; the backward's only

  int64_t leaves() const { return padded / kLeaf; }
};

// The points [block * kBlock, (block + 1) * kBlock) of `out`, and of `grad_features`.
#define FASTSEG_EXACT_GAUSSIAN(NAME) void NAME(const ExactGaussian<T>& image, int64_t block)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_EXACT_GAUSSIAN(exact_gaussian_filter_block))
FASTSEG_DECLARE_KERNEL(template <class T>
                       FASTSEG_EXACT_GAUSSIAN(exact_gaussian_filter_backward_block))
#undef FASTSEG_EXACT_GAUSSIAN

}  // namespace fastseg::cpu
