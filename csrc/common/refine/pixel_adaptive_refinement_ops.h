#pragma once
// fastseg::pixel_adaptive_refinement and its gradient but for the kernels, which the bindings of a
// device bring: arguments checked, inputs dense, output allocated.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/refine/refinement.h"
#include "common/tensor_checks.h"

namespace fastseg {

struct RefinementCall {
  Affinity affinity;
  bool transposed;  // the gradient
  std::vector<int64_t> dilations;
  int64_t iterations;
  Tensor image;   // dense (N, K, H, W): double for masks of double, float for all others
  Tensor planes;  // dense (N, C, H, W): masks, or the gradient of refined ones
  Tensor out;
};

using RefinementKernel = void (*)(const RefinementCall&);

namespace pixel_adaptive_refinement_ops {

inline void check_planes(const char* op, const char* name, const Tensor& t) {
  check_float(t, op, name);
  FASTSEG_CHECK(t.dim() == 4, op, ": ", name, " must be (N, C, H, W), got ", to_string(t.sizes()));
}

inline Tensor refined(const char* op, const Tensor& image, const char* name, const Tensor& planes,
                      std::vector<int64_t> dilations, int64_t iterations,
                      const std::string& variant, bool transposed, RefinementKernel kernel) {
  check_planes(op, "image", image);
  check_planes(op, name, planes);
  check_same_device(image, "image", planes, name, op);
  FASTSEG_CHECK(image.size(1) > 0, op, ": image must have at least one channel, got ",
                to_string(image.sizes()));
  for (const int d : {0, 2, 3}) {
    FASTSEG_CHECK(image.size(d) == planes.size(d), op, ": image must have ", name,
                  "'s N, H and W, got ", to_string(image.sizes()), " for ", name, " ",
                  to_string(planes.sizes()));
  }
  const bool positive =
      std::all_of(dilations.begin(), dilations.end(), [](auto d) { return d > 0; });
  FASTSEG_CHECK(positive && !dilations.empty(), op,
                ": dilations must be positive, at least one, got ", to_string(dilations));
  FASTSEG_CHECK(iterations >= 0, op, ": iterations must not be negative, got ", iterations);
  FASTSEG_CHECK(variant == "par" || variant == "pamr", op,
                ": variant must be one of par, pamr, got '", variant, "'");
  const bool wide = planes.scalar_type() == ScalarType::Double;
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  const RefinementCall call{
      variant == "par" ? Affinity::kPar : Affinity::kPamr,
      transposed,
      std::move(dilations),
      iterations,
      dense(image.scalar_type() == dtype ? image : torch::stable::to(image, dtype), false),
      dense(planes, /*channels_last=*/false),
      empty_like_layout(planes, {planes.sizes().begin(), planes.sizes().end()},
                        planes.scalar_type(), /*channels_last=*/false)};
  if (call.out.numel() > 0) kernel(call);
  return call.out;
}

template <RefinementKernel kernel>
Tensor pixel_adaptive_refinement(const Tensor& image, const Tensor& masks,
                                 std::vector<int64_t> dilations, int64_t iterations,
                                 std::string variant) {
  return refined("fastseg::pixel_adaptive_refinement", image, "masks", masks, std::move(dilations),
                 iterations, variant, /*transposed=*/false, kernel);
}

template <RefinementKernel kernel>
Tensor pixel_adaptive_refinement_backward(const Tensor& grad, const Tensor& image,
                                          std::vector<int64_t> dilations, int64_t iterations,
                                          std::string variant) {
  return refined("fastseg::pixel_adaptive_refinement_backward", image, "grad", grad,
                 std::move(dilations), iterations, variant, /*transposed=*/true, kernel);
}

}  // namespace pixel_adaptive_refinement_ops
}  // namespace fastseg
