#pragma once
// fastseg::bilateral_filter but for its kernel, which the CPU's binding brings: arguments checked,
// inputs dense, output allocated.

#include <cmath>
#include <cstdint>

#include "common/crf/permutohedral.h"
#include "common/crf/permutohedral_blur.h"
#include "common/tensor_checks.h"

namespace fastseg {

// Everything but the image's values is checked. Tensors are contiguous.
struct BilateralCall {
  Tensor values, image, out;  // (B, K, H, W), (B, C, H, W), (B, K, H, W)
  double sxy, srgb;           // standard deviations, positive
  double refine;              // of the lattice's features
  int dilation;
  BlurOptions blur;
  double gain;

  int64_t batch() const { return values.size(0); }
  int64_t channels() const { return values.size(1); }
  int64_t height() const { return values.size(2); }
  int64_t width() const { return values.size(3); }
  int64_t colours() const { return image.size(1); }
};

using BilateralKernel = void (*)(const BilateralCall&);

namespace bilateral_filter_ops {

constexpr const char* kOp = "fastseg::bilateral_filter";

inline void check_bandwidth(const char* name, double sigma) {
  FASTSEG_CHECK(sigma > 0 && std::isfinite(sigma), kOp, ": ", name,
                " must be positive and finite, got ", sigma);
}

template <BilateralKernel filter>
Tensor bilateral_filter(const Tensor& values, const Tensor& image, double sxy, double srgb,
                        double refine, int64_t dilation, int64_t passes, bool symmetric,
                        bool reverse, double gain, double side) {
  FASTSEG_CHECK(values.dim() == 4, kOp, ": values must have shape (B, K, H, W), got ",
                to_string(values.sizes()));
  const ScalarType dtype = values.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp,
                ": values must be float32 or float64, got ", dtype);
  const int64_t b = values.size(0), h = values.size(2), w = values.size(3);
  constexpr int kMostColours = permutohedral::kMaxDimensions - 2;
  FASTSEG_CHECK(image.dim() == 4 && image.size(0) == b && image.size(2) == h &&
                    image.size(3) == w && image.size(1) >= 1 && image.size(1) <= kMostColours,
                kOp, ": image must have shape (", b, ", C, ", h, ", ", w, ") with C from 1 to ",
                kMostColours, ", got ", to_string(image.sizes()));
  FASTSEG_CHECK(image.scalar_type() == dtype, kOp, ": image must have values' dtype ", dtype,
                ", got ", image.scalar_type());
  check_same_device(values, "values", image, "image", kOp);
  check_bandwidth("sxy", sxy);
  check_bandwidth("srgb", srgb);
  FASTSEG_CHECK(refine > 0 && refine <= 1e6, kOp, ": refine must be positive, got ", refine);
  FASTSEG_CHECK(dilation >= 0 && dilation <= 2, kOp, ": dilation must be 0, 1 or 2, got ",
                dilation);
  FASTSEG_CHECK(passes >= 1 && passes <= 64, kOp, ": passes must be from 1 to 64, got ", passes);
  const BilateralCall call{dense(values, false),
                           dense(image, false),
                           empty_like_layout(values, {b, values.size(1), h, w}, dtype, false),
                           sxy,
                           srgb,
                           refine,
                           static_cast<int>(dilation),
                           {static_cast<int>(passes), symmetric, reverse, side},
                           gain};
  if (b > 0 && h > 0 && w > 0) filter(call);
  return call.out;
}

}  // namespace bilateral_filter_ops
}  // namespace fastseg
