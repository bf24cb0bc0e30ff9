#pragma once
// fastseg::upsample_softmax_sums and its gradient but for the kernels, which a device's bindings
// bring: arguments checked, outputs allocated.

#include <cstdint>
#include <tuple>
#include <vector>

#include "common/head/target_args.h"

namespace fastseg {

struct SoftmaxSumsCall {
  const char* op;
  Tensor logits;  // (N, C, h, w) of any strides
  Tensor target;  // (N, H, W), contiguous
  bool align_corners;
  int64_t ignore_index;
  bool squared;
};

struct SoftmaxSumsOutputs {
  Tensor intersection, probability, count;  // (N, C)
  Tensor normalizer;                        // (N, H, W)
};

struct SoftmaxSumsGrads {
  Tensor intersection, probability;  // (N, C), contiguous
};

using SoftmaxSumsKernel = void (*)(const SoftmaxSumsCall&, const SoftmaxSumsOutputs&);
using SoftmaxSumsBackwardKernel = void (*)(const SoftmaxSumsCall&, const SoftmaxSumsGrads&,
                                           const Tensor& normalizer, const Tensor& grad_logits);

namespace upsample_softmax_sums_ops {

template <SoftmaxSumsKernel kernel>
std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_softmax_sums(const Tensor& logits,
                                                                 const Tensor& target,
                                                                 bool align_corners,
                                                                 int64_t ignore_index,
                                                                 bool squared) {
  constexpr const char* op = "fastseg::upsample_softmax_sums";
  check_target(op, logits, target);
  const SoftmaxSumsCall call{op,           logits, dense(target, false), align_corners,
                             ignore_index, squared};
  const auto empty = [&](const std::vector<int64_t>& size) {
    return empty_like_layout(logits, size, loss_dtype(logits), false);
  };
  const std::vector<int64_t> classes{logits.size(0), logits.size(1)};
  const SoftmaxSumsOutputs outputs{empty(classes), empty(classes), empty(classes),
                                   empty({target.size(0), target.size(1), target.size(2)})};
  kernel(call, outputs);
  return {outputs.intersection, outputs.probability, outputs.count, outputs.normalizer};
}

inline void check_grad(const char* op, const char* name, const Tensor& grad, const Tensor& logits) {
  FASTSEG_CHECK(grad.dim() == 2 && grad.size(0) == logits.size(0) && grad.size(1) == logits.size(1),
                op, ": ", name, " must have the shape (N, C) = (", logits.size(0), ", ",
                logits.size(1), "), got ", to_string(grad.sizes()));
  FASTSEG_CHECK(grad.scalar_type() == loss_dtype(logits), op, ": ", name, " must be ",
                loss_dtype(logits), " for logits of ", logits.scalar_type(), ", got ",
                grad.scalar_type());
  check_same_device(logits, "logits", grad, name, op);
}

template <SoftmaxSumsBackwardKernel kernel>
Tensor upsample_softmax_sums_backward(const Tensor& grad_intersection,
                                      const Tensor& grad_probability, const Tensor& logits,
                                      const Tensor& target, const Tensor& normalizer,
                                      bool align_corners, int64_t ignore_index, bool squared) {
  constexpr const char* op = "fastseg::upsample_softmax_sums_backward";
  check_target(op, logits, target);
  check_grad(op, "grad_intersection", grad_intersection, logits);
  check_grad(op, "grad_probability", grad_probability, logits);
  check_pixels(op, "normalizer", normalizer, target, logits);
  const SoftmaxSumsCall call{op,           logits, dense(target, false), align_corners,
                             ignore_index, squared};
  const std::vector<int64_t> size(logits.sizes().begin(), logits.sizes().end());
  const Tensor out =
      empty_like_layout(logits, size, logits.scalar_type(), is_channels_last(logits));
  kernel(call, {dense(grad_intersection, false), dense(grad_probability, false)}, normalizer, out);
  return out;
}

}  // namespace upsample_softmax_sums_ops
}  // namespace fastseg
