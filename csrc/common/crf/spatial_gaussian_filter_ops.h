#pragma once
// fastseg::spatial_gaussian_filter but for the kernels, which the CPU and the CUDA bindings bring:
// arguments checked, values dense, output allocated.

#include <cstdint>

#include "common/tensor_checks.h"

namespace fastseg {

struct SpatialGaussianCall {
  Tensor values;  // dense: (B, C, ...) or, channels_last, (B, H, W, C)
  Tensor sigma;   // contiguous
  Tensor out;
  int derivative;
  bool channels_last;

  int axes() const { return static_cast<int>(values.dim()) - 2; }
  // The values that lie side by side in a pixel, and the images of such pixels.
  int64_t lanes() const { return channels_last ? values.size(1) : 1; }
  int64_t images() const {
    return channels_last ? values.size(0) : values.size(0) * values.size(1);
  }
};

using SpatialGaussianKernel = void (*)(const SpatialGaussianCall&);

namespace spatial_gaussian_filter_ops {

constexpr const char* kOp = "fastseg::spatial_gaussian_filter";

inline void check_32_or_64(const Tensor& x, const char* name) {
  const ScalarType dtype = x.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp, ": ", name,
                " must be float32 or float64, got ", dtype);
}

template <SpatialGaussianKernel filter>
Tensor spatial_gaussian_filter(const Tensor& values, const Tensor& sigma, int64_t derivative) {
  const int64_t axes = values.dim() - 2;
  FASTSEG_CHECK(axes >= 1 && axes <= 3, kOp,
                ": values must have shape (B, C, W), (B, C, H, W) or (B, C, D, H, W), got ",
                to_string(values.sizes()));
  check_32_or_64(values, "values");
  check_32_or_64(sigma, "sigma");
  FASTSEG_CHECK(sigma.dim() == 1 && sigma.size(0) == axes, kOp, ": sigma must have shape (", axes,
                ",), got ", to_string(sigma.sizes()));
  check_same_device(values, "values", sigma, "sigma", kOp);
  FASTSEG_CHECK(derivative >= -1 && derivative < axes, kOp, ": derivative must be -1 or one of ",
                axes, " axes, got ", derivative);
  const bool channels_last =
      axes == 2 && !values.is_contiguous() && is_dense(values, /*channels_last=*/true);
  const SpatialGaussianCall call{
      dense(values, channels_last), dense(sigma, /*channels_last=*/false),
      empty_like_layout(values, {values.sizes().begin(), values.sizes().end()},
                        values.scalar_type(), channels_last),
      static_cast<int>(derivative), channels_last};
  filter(call);
  return call.out;
}

}  // namespace spatial_gaussian_filter_ops
}  // namespace fastseg
