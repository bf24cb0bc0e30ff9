#pragma once
// The exact Gaussian filter of the pixel grid: a convolution along each axis, zeros outside.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastseg::cuda {

inline constexpr int kMaxAxes = 3;

// Dense (images, *sizes, lanes). The images, each size and the elements of an image are below 2^30.
struct PixelGrid {
  int64_t images;
  int axes;
  int64_t sizes[kMaxAxes];
  int64_t lanes;

  int64_t all_taps() const {  // room for those of every axis, one axis after another
    int64_t sum = 0;
    for (int a = 0; a < axes; ++a) sum += sizes[a];
    return sum;
  }
  int64_t points() const {
    int64_t product = 1;
    for (int a = 0; a < axes; ++a) product *= sizes[a];
    return product;
  }
};

// One side of the taps of all axes, and how many of an axis's follow the centre. On the device: the
// bandwidths are, and nobody waits for them.
template <class T>
struct AxisTaps {
  T* taps;     // (grid.all_taps())
  int* radii;  // (kMaxAxes)
};

// derivative: the axis whose taps are those of the derivative by its bandwidth, or -1. A bandwidth
// that is not positive and finite fails the stream.
template <class T, class Sigma>
cudaError_t make_taps(const PixelGrid& grid, const Sigma* sigma, int derivative,
                      const AxisTaps<T>& out, cudaStream_t stream);

// Nothing overlaps. scratch: as large as out, for more than one axis.
template <class T>
cudaError_t spatial_gaussian_filter(const PixelGrid& grid, const AxisTaps<T>& taps, const T* in,
                                    T* out, T* scratch, cudaStream_t stream);

}  // namespace fastseg::cuda
