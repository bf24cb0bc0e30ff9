#pragma once
// fastseg::upsample_cross_entropy and its gradient but for the kernels, which a device's bindings
// bring: arguments checked, outputs allocated.

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "common/head/target_args.h"

namespace fastseg {

struct CrossEntropyCall {
  const char* op;
  Tensor logits;                 // (N, C, h, w) of any strides
  Tensor target;                 // (N, H, W), contiguous
  std::optional<Tensor> weight;  // (C,), contiguous
  std::optional<Tensor> weight_map;
  bool align_corners;
  int64_t ignore_index;
  double label_smoothing;
};

struct CrossEntropyOutputs {
  bool mean;            // of losses that are one number
  Tensor loss;          // (), or (N, H, W) of the pixels
  Tensor total_weight;  // ()
  Tensor normalizer;    // (N, H, W)
};

using CrossEntropyKernel = void (*)(const CrossEntropyCall&, const CrossEntropyOutputs&);
using CrossEntropyBackwardKernel = void (*)(const CrossEntropyCall&, const Tensor& grad,
                                            const Tensor& normalizer, const Tensor& grad_logits);

namespace upsample_cross_entropy_ops {

using Optional = std::optional<Tensor>;

inline CrossEntropyCall checked(const char* op, const Tensor& logits, const Tensor& target,
                                const Optional& weight, const Optional& weight_map,
                                bool align_corners, int64_t ignore_index, double label_smoothing) {
  check_target(op, logits, target);
  check_weight(op, logits, weight);
  if (weight_map) check_pixels(op, "weight_map", *weight_map, target, logits);
  FASTSEG_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op,
                ": label_smoothing must lie in [0, 1], got ", label_smoothing);
  CrossEntropyCall call{op,         logits,        dense(target, false), std::nullopt,
                        weight_map, align_corners, ignore_index,         label_smoothing};
  if (weight) call.weight = dense(*weight, false);
  return call;
}

template <CrossEntropyKernel kernel>
std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(
    const Tensor& logits, const Tensor& target, const Optional& weight, const Optional& weight_map,
    bool align_corners, int64_t ignore_index, double label_smoothing, std::string reduction) {
  constexpr const char* op = "fastseg::upsample_cross_entropy";
  const CrossEntropyCall call =
      checked(op, logits, target, weight, weight_map, align_corners, ignore_index, label_smoothing);
  FASTSEG_CHECK(reduction == "none" || reduction == "mean" || reduction == "sum", op,
                ": reduction must be \"none\", \"mean\" or \"sum\", got \"", reduction, "\"");
  const std::vector<int64_t> pixels{target.size(0), target.size(1), target.size(2)};
  const ScalarType dtype = loss_dtype(logits);
  const auto empty = [&](const std::vector<int64_t>& size) {
    return empty_like_layout(logits, size, dtype, false);
  };
  const CrossEntropyOutputs outputs{reduction == "mean",
                                    empty(reduction == "none" ? pixels : std::vector<int64_t>{}),
                                    empty({}), empty(pixels)};
  kernel(call, outputs);
  return {outputs.loss, outputs.total_weight, outputs.normalizer};
}

template <CrossEntropyBackwardKernel kernel>
Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                       const Tensor& target, const Tensor& normalizer,
                                       const Optional& weight, const Optional& weight_map,
                                       bool align_corners, int64_t ignore_index,
                                       double label_smoothing) {
  constexpr const char* op = "fastseg::upsample_cross_entropy_backward";
  const CrossEntropyCall call =
      checked(op, logits, target, weight, weight_map, align_corners, ignore_index, label_smoothing);
  check_pixels(op, "grad", grad, target, logits);
  check_pixels(op, "normalizer", normalizer, target, logits);
  const std::vector<int64_t> size(logits.sizes().begin(), logits.sizes().end());
  const Tensor out =
      empty_like_layout(logits, size, logits.scalar_type(), is_channels_last(logits));
  kernel(call, grad, normalizer, out);
  return out;
}

}  // namespace upsample_cross_entropy_ops
}  // namespace fastseg
