#pragma once
// fastseg::distance_transform but for the kernels, which the CPU and the CUDA bindings bring:
// arguments checked, mask contiguous, output allocated.

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/head/distance_transform.h"
#include "common/tensor_checks.h"

namespace fastseg {

struct DistanceTransformCall {
  DistanceTransform op;
  Tensor mask;  // contiguous
  Tensor out;   // contiguous, float32 or float64
};

using DistanceTransformKernel = void (*)(const DistanceTransformCall&);

namespace distance_transform_ops {

constexpr const char* kOp = "fastseg::distance_transform";

// An element is zero where all of these bits are: those of a float but for its sign.
inline uint64_t significant_bits(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 0x7fff;
    case ScalarType::Float:
      return 0x7fffffff;
    case ScalarType::Double:
      return 0x7fffffffffffffff;
    default:
      return ~uint64_t{0};
  }
}

// Calls body(U{}) with the unsigned integer as wide as the dtype; raises for dtypes that are none
// of a mask.
template <class Body>
void dispatch_mask(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
      return body(uint8_t{});
    case ScalarType::Short:
    case ScalarType::UInt16:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return body(uint16_t{});
    case ScalarType::Int:
    case ScalarType::UInt32:
    case ScalarType::Float:
      return body(uint32_t{});
    case ScalarType::Long:
    case ScalarType::UInt64:
    case ScalarType::Double:
      return body(uint64_t{});
    default:
      FASTSEG_CHECK(false, kOp, ": mask must be bool, of integers, or float32, float64, float16 ",
                    "or bfloat16, got ", dtype);
  }
}

template <DistanceTransformKernel kernel>
Tensor distance_transform(const Tensor& mask, std::vector<double> spacing, bool squared,
                          bool in_float64) {
  const int64_t axes = static_cast<int64_t>(spacing.size());
  FASTSEG_CHECK(axes >= 1 && axes <= 3, kOp,
                ": spacing must hold a number for each of 1, 2 or 3 axes, got ", axes);
  FASTSEG_CHECK(mask.dim() >= axes, kOp, ": mask must have at least ", axes,
                " dimensions, got shape ", to_string(mask.sizes()));
  for (const double step : spacing) {
    FASTSEG_CHECK(step > 0 && std::isfinite(step), kOp,
                  ": spacing must be positive and finite, got ", to_string(spacing));
  }
  dispatch_mask(mask.scalar_type(), [](auto) {});
  const std::vector<int64_t> shape(mask.sizes().begin(), mask.sizes().end());
  const int64_t* sizes = shape.data() + (shape.size() - axes);
  constexpr int64_t kLargest = int64_t{1} << 28;
  int64_t volume = 1;
  for (int64_t a = 0; a < axes; ++a) {
    FASTSEG_CHECK(sizes[a] <= kLargest, kOp, ": an axis must be no longer than 2^28, got ",
                  to_string(shape));
    volume *= sizes[a];
  }
  const ScalarType dtype = in_float64 ? ScalarType::Double : ScalarType::Float;
  const DistanceTransformCall call{
      fastseg::distance_transform(volume > 0 ? mask.numel() / volume : 0, static_cast<int>(axes),
                                  sizes, spacing.data(), squared),
      dense(mask, /*channels_last=*/false),
      empty_like_layout(mask, shape, dtype, /*channels_last=*/false)};
  if (call.out.numel() > 0) kernel(call);
  return call.out;
}

}  // namespace distance_transform_ops
}  // namespace fastseg
