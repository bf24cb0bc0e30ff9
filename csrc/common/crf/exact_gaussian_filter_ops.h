#pragma once
// fastseg::exact_gaussian_filter, its backward and fastseg::exact_gaussian_blocks but for the
// kernels: arguments checked, inputs dense and of one dtype, outputs allocated.

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/crf/exact_gaussian_blocks.h"
#include "common/tensor_checks.h"

namespace fastseg {

// What of a filter depends on the features alone: the points of each image in the order of a k-d
// tree, padded to P of whole blocks with copies of the last one. All tensors are contiguous.
struct ExactGaussianBlocks {
  Tensor order;         // (B, P) int32: where each point lies in its image
  Tensor features;      // (B, P, d)
  Tensor lower, upper;  // (B, d, P / kLeaf): the corners of the leaves' boxes
};

using ExactGaussianBlocksKernel = void (*)(const Tensor& features, ExactGaussianBlocks& out,
                                           const char* op);

// All tensors are contiguous and of the features' dtype; grad and grad_features are the backward's.
struct ExactGaussianCall {
  Tensor values;
  Tensor features;
  std::optional<ExactGaussianBlocks> blocks;  // of the features, where the caller built them
  const Tensor* grad;
  double limit;  // of squared distances: where weights fall below the cutoff
  Tensor out;
  Tensor* grad_features;
};

using ExactGaussianKernel = void (*)(const ExactGaussianCall&, const char* op);

namespace exact_gaussian_filter_ops {

inline void check_features(const char* op, const Tensor& features) {
  FASTSEG_CHECK(features.dim() == 3, op, ": features must have the shape (B, d, N), got ",
                to_string(features.sizes()));
  FASTSEG_CHECK(features.size(1) >= 1, op, ": features must have d >= 1 dimensions, got 0");
  FASTSEG_CHECK(features.size(2) < std::numeric_limits<int32_t>::max() - exact_gaussian::kBlock, op,
                ": features must have fewer than 2^31 - 65 points, got ", features.size(2));
}

inline void check_cutoff(const char* op, double cutoff) {
  FASTSEG_CHECK(cutoff >= 0 && cutoff < 1, op, ": cutoff must be in [0, 1), got ", cutoff);
}

inline void check(const char* op, const Tensor& values, const Tensor& features, double cutoff) {
  FASTSEG_CHECK(values.dim() == 3, op, ": values must have the shape (B, C, N), got ",
                to_string(values.sizes()));
  check_features(op, features);
  FASTSEG_CHECK(features.size(0) == values.size(0), op, ": features must have the batch size ",
                values.size(0), " of values, got ", features.size(0));
  FASTSEG_CHECK(features.size(2) == values.size(2), op, ": features must have the ", values.size(2),
                " points of values, got ", features.size(2));
  check_float(values, op, "values");
  const ScalarType expected =
      values.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  FASTSEG_CHECK(features.scalar_type() == expected, op, ": features must be ", expected,
                " for values of ", values.scalar_type(), ", got ", features.scalar_type());
  check_same_device(values, "values", features, "features", op);
  check_cutoff(op, cutoff);
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

using GivenBlocks = std::optional<std::vector<Tensor>>;

// The blocks that a caller built, if any.
inline std::optional<ExactGaussianBlocks> checked(const char* op, const Tensor& features,
                                                  const GivenBlocks& blocks) {
  if (!blocks) return std::nullopt;
  const std::vector<Tensor>& given = *blocks;
  FASTSEG_CHECK(given.size() == 4, op,
                ": blocks must be None or exact_gaussian_blocks' 4 tensors, got ", given.size());
  const int64_t b = features.size(0), d = features.size(1), n = features.size(2);
  const int64_t padded = exact_gaussian::padded_points(n);
  const std::vector<int64_t> box{b, d, padded / exact_gaussian::kLeaf};
  const std::vector<int64_t> sizes[] = {{b, padded}, {b, padded, d}, box, box};
  for (size_t i = 0; i < given.size(); ++i) {
    const std::string name = "blocks[" + std::to_string(i) + "]";
    const ScalarType dtype = i == 0 ? ScalarType::Int : features.scalar_type();
    const std::vector<int64_t> size(given[i].sizes().begin(), given[i].sizes().end());
    FASTSEG_CHECK(size == sizes[i] && given[i].scalar_type() == dtype, op, ": ", name, " must be ",
                  dtype, " of shape ", to_string(sizes[i]), ", got ", given[i].scalar_type(),
                  " of ", to_string(size));
    check_same_device(features, "features", given[i], name.c_str(), op);
  }
  return ExactGaussianBlocks{dense(given[0], false), dense(given[1], false), dense(given[2], false),
                             dense(given[3], false)};
}

template <ExactGaussianBlocksKernel build>
std::vector<Tensor> exact_gaussian_blocks(const Tensor& features, double cutoff) {
  constexpr const char* op = "fastseg::exact_gaussian_blocks";
  check_features(op, features);
  const ScalarType dtype = features.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                ": features must be float32 or float64, got ", dtype);
  check_cutoff(op, cutoff);
  const int64_t b = features.size(0), d = features.size(1);
  const int64_t padded = exact_gaussian::padded_points(features.size(2));
  const auto empty = [&](const std::vector<int64_t>& size, ScalarType of) {
    return empty_like_layout(features, size, of, false);
  };
  ExactGaussianBlocks out{empty({b, padded}, ScalarType::Int), empty({b, padded, d}, dtype),
                          empty({b, d, padded / exact_gaussian::kLeaf}, dtype),
                          empty({b, d, padded / exact_gaussian::kLeaf}, dtype)};
  build(prepared(features, dtype), out, op);
  return {out.order, out.features, out.lower, out.upper};
}

template <ExactGaussianKernel kernel>
Tensor exact_gaussian_filter(const Tensor& values, const Tensor& features, double cutoff,
                             const GivenBlocks& blocks) {
  constexpr const char* op = "fastseg::exact_gaussian_filter";
  check(op, values, features, cutoff);
  const ScalarType dtype = features.scalar_type();
  const ExactGaussianCall call{prepared(values, dtype),
                               prepared(features, dtype),
                               checked(op, features, blocks),
                               nullptr,
                               squared_reach(cutoff),
                               empty_like(values, dtype),
                               nullptr};
  kernel(call, op);
  return prepared(call.out, values.scalar_type());
}

template <ExactGaussianKernel kernel>
std::tuple<Tensor, Tensor> exact_gaussian_filter_backward(const Tensor& grad, const Tensor& values,
                                                          const Tensor& features, double cutoff,
                                                          const GivenBlocks& blocks) {
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
  const ExactGaussianCall call{prepared(values, dtype),
                               prepared(features, dtype),
                               checked(op, features, blocks),
                               &dense_grad,
                               squared_reach(cutoff),
                               empty_like(values, dtype),
                               &grad_features};
  kernel(call, op);
  return {prepared(call.out, values.scalar_type()), grad_features};
}

}  // namespace exact_gaussian_filter_ops
}  // namespace fastseg
