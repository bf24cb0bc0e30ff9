#pragma once
// fastseg::exact_gaussian_filter and its backward but for the kernels: arguments checked, inputs
// dense and of one dtype, outputs allocated.

#include <cmath>
#include <limits>
#include <tuple>

#include "common/tensor_checks.h"

namespace fastseg {

// All tensors are contiguous and of the features' dtype; grad and grad_features are the backward's.
struct ExactGaussianCall {
  Tensor values;
  Tensor features;
  const Tensor* grad;
  double limit;  // of squared distances: where weights fall below the cutoff
  Tensor out;
  Tensor* grad_features;
};

using ExactGaussianKernel = void (*)(const ExactGaussianCall&, const char* op);

namespace exact_gaussian_filter_ops {

inline void check(const char* op, const Tensor& values, const Tensor& features, double cutoff) {
  FASTSEG_CHECK(values.dim() == 3, op, ": values must have the shape (B, C, N), got ",
                to_string(values.sizes()));
  FASTSEG_CHECK(features.dim() == 3, op, ": features must have the shape (B, d, N), got ",
                to_string(features.sizes()));
  FASTSEG_CHECK(features.size(1) >= 1, op, ": features must have d >= 1 dimensions, got 0");
  FASTSEG_CHECK(features.size(0) == values.size(0), op, ": features must have the batch size ",
                values.size(0), " of values, got ", features.size(0));
  FASTSEG_CHECK(features.size(2) == values.size(2), op, ": features must have the ", values.size(2),
                " points of values, got ", features.size(2));
  FASTSEG_CHECK(values.size(2) <= std::numeric_limits<int32_t>::max() - 63, op,
                ": values must have fewer than 2^31 - 64 points, got ", values.size(2));
  check_float(values, op, "values");
  const ScalarType expected =
      values.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  FASTSEG_CHECK(features.scalar_type() == expected, op, ": features must be ", expected,
                " for values of ", values.scalar_type(), ", got ", features.scalar_type());
  check_same_device(values, "values", features, "features", op);
  FASTSEG_CHECK(cutoff >= 0 && cutoff < 1, op, ": cutoff must be in [0, 1), got ", cutoff);
}

inline double squared_reach(double cutoff) {
  return cutoff > 0 ? -2 * std::log(cutoff) : std::numeric_limits<double>::infinity();
}

// Contiguous, of that dtype.
inline Tensor prepared(const Tensor& x, ScalarType dtype) {
  return dense(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype), false);
}

inline Tensor empty_like(const Tensor& x, ScalarType dtype) {
  const auto size = x.sizes();
  return empty_like_layout(x, std::vector<int64_t>(size.begin(), size.end()), dtype, false);
}

template <ExactGaussianKernel kernel>
Tensor exact_gaussian_filter(const Tensor& values, const Tensor& features, double cutoff) {
  constexpr const char* op = "fastseg::exact_gaussian_filter";
  check(op, values, features, cutoff);
  const ScalarType dtype = features.scalar_type();
  const ExactGaussianCall call{prepared(values, dtype), prepared(features, dtype), nullptr,
                               squared_reach(cutoff),   empty_like(values, dtype), nullptr};
  kernel(call, op);
  return prepared(call.out, values.scalar_type());
}

template <ExactGaussianKernel kernel>
std::tuple<Tensor, Tensor> exact_gaussian_filter_backward(const Tensor& grad, const Tensor& values,
                                                          const Tensor& features, double cutoff) {
  constexpr const char* op = "fastseg::exact_gaussian_filter_backward";
  check(op, values, features, cutoff);
  FASTSEG_CHECK(grad.sizes().equals(values.sizes()) && grad.scalar_type() == values.scalar_type(),
                op, ": grad must have the shape ", to_string(values.sizes()), " and dtype ",
                values.scalar_type(), " of values, got ", to_string(grad.sizes()), " and ",
                grad.scalar_type());
  check_same_device(values, "values", grad, "grad", op);
  const ScalarType dtype = features.scalar_type();
  const Tensor dense_grad = prepared(grad, dtype);
  Tensor grad_features = empty_like(features, dtype);
  const ExactGaussianCall call{prepared(values, dtype), prepared(features, dtype), &dense_grad,
                               squared_reach(cutoff),   empty_like(values, dtype), &grad_features};
  kernel(call, op);
  return {prepared(call.out, values.scalar_type()), grad_features};
}

}  // namespace exact_gaussian_filter_ops
}  // namespace fastseg
