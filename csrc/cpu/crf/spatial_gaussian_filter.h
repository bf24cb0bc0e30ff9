#pragma once
// The exact Gaussian filter of the pixel grid, without torch: out_i = sum_j exp(-1/2 sum_a
// ((x_i - x_j)_a / sigma_a)^2) in_j, zeros outside, for images of one to three axes.
//
// The filter is separable. One axis at a time, a line of n elements that are `lanes` apart is a
// convolution of n rows: for the height of a (H, W, C) image the rows are W * C long, for its width
// C. Planes whose elements are adjacent along the last axis take the other form there.

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/simd/simd_level.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

template <class T>
struct SpatialGaussian {
  std::array<int64_t, 3> sizes;        // (D, H, W); axes that the image lacks are 1
  int64_t lanes;                       // values of a pixel, adjacent: (D, H, W, lanes)
  std::array<std::vector<T>, 3> taps;  // one side of each axis: gaussian_taps

  int64_t row() const { return sizes[2] * lanes; }
  int64_t slice() const { return sizes[1] * row(); }
  int64_t volume() const { return sizes[0] * slice(); }

  // Whether there is a pass along the depth.
  bool has_depth() const { return taps[0].size() > 1 || taps[0][0] != T{1}; }

  // The rows of a task: a function of the sizes alone.
  int64_t strip() const;
};

// sizes: one to three axes; sigma: of each axis, in pixels, positive; derivative: the axis whose
// taps are those of the derivative by its sigma, or -1.
template <class T>
SpatialGaussian<T> spatial_gaussian(const int64_t* sizes, const double* sigma, int axes,
                                    int derivative, int64_t lanes);

// Filters `images` images, dense one after another. `scratch` holds one image and is needed where
// has_depth() alone. out and in do not overlap.
template <class T>
void spatial_gaussian_filter(const SpatialGaussian<T>& op, int64_t images, const T* in, T* out,
                             T* scratch, const TaskRunner& tasks);

// The pass along the depth of one image alone.
template <class T>
void spatial_gaussian_depths(const SpatialGaussian<T>& op, const T* in, T* out,
                             const TaskRunner& tasks);

// Rows [begin, end) of height and width of one slice (H, W, lanes) that starts at `in`, into `out`,
// which is the first of these rows. For those who want a few rows while they are in the cache: each
// call reads taps[1].size() - 1 rows on both sides too.
#define FASTSEG_SPATIAL_GAUSSIAN_ROWS(T)                                               \
  void spatial_gaussian_rows(const SpatialGaussian<T>& op, const T* in, int64_t begin, \
                             int64_t end, T* out)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SPATIAL_GAUSSIAN_ROWS(T))
#undef FASTSEG_SPATIAL_GAUSSIAN_ROWS

// Slice `index` of the volume at `in`, filtered along the depth alone, rows [begin, end) of it,
// into `out`, the first of these rows.
#define FASTSEG_SPATIAL_GAUSSIAN_DEPTH(T)                                               \
  void spatial_gaussian_depth(const SpatialGaussian<T>& op, const T* in, int64_t index, \
                              int64_t begin, int64_t end, T* out)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_SPATIAL_GAUSSIAN_DEPTH(T))
#undef FASTSEG_SPATIAL_GAUSSIAN_DEPTH

}  // namespace fastseg::cpu
