// fastseg::spatial_gaussian_filter on CUDA.

#include "cuda/crf/spatial_gaussian_filter.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/spatial_gaussian_filter_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

constexpr const char* kGaussian = "fastseg::spatial_gaussian_filter";

PixelGrid grid_of(const SpatialGaussianCall& call) {
  PixelGrid grid{call.images(), call.axes(), {}, call.lanes()};
  for (int a = 0; a < grid.axes; ++a) {
    grid.sizes[a] = call.values.size(2 + a);
    check_count(kGaussian, "the size of an axis", grid.sizes[a]);
  }
  check_count(kGaussian, "the elements of an image", grid.points() * grid.lanes);
  check_count(kGaussian, "the number of images", grid.images);
  return grid;
}

template <class T>
void filter_as(const SpatialGaussianCall& call) {
  const PixelGrid grid = grid_of(call);
  const Tensor taps_memory = torch::stable::new_empty(call.out, {grid.all_taps()});
  const Tensor radii = torch::stable::new_empty(call.out, {kMaxAxes}, ScalarType::Int);
  const Tensor scratch =
      torch::stable::new_empty(call.out, {grid.axes > 1 ? call.out.numel() : int64_t{0}});
  const AxisTaps<T> taps{static_cast<T*>(taps_memory.mutable_data_ptr()),
                         static_cast<int*>(radii.mutable_data_ptr())};
  launch_beside(call.out, kGaussian, [&](cudaStream_t stream) {
    const auto make = [&](auto zero) {
      return make_taps(grid, static_cast<const decltype(zero)*>(call.sigma.const_data_ptr()),
                       call.derivative, taps, stream);
    };
    const bool wide = call.sigma.scalar_type() == ScalarType::Double;
    const cudaError_t error = wide ? make(double{}) : make(float{});
    if (error != cudaSuccess) return error;
    return spatial_gaussian_filter(grid, taps, static_cast<const T*>(call.values.const_data_ptr()),
                                   static_cast<T*>(call.out.mutable_data_ptr()),
                                   static_cast<T*>(scratch.mutable_data_ptr()), stream);
  });
}

void filter_pixels(const SpatialGaussianCall& call) {
  if (call.out.numel() == 0) return;
  call.values.scalar_type() == ScalarType::Double ? filter_as<double>(call)
                                                  : filter_as<float>(call);
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::spatial_gaussian_filter_ops;
  m.impl("spatial_gaussian_filter",
         TORCH_BOX(&ops::spatial_gaussian_filter<fastseg::cuda::filter_pixels>));
}
