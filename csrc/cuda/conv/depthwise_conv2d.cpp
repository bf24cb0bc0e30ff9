// fastseg::depthwise_conv2d and its gradients on CUDA.

#include "cuda/conv/depthwise_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/conv/depthwise_conv2d_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

// Of a convolution from `input` to `output`, both (N, C, h, w).
DepthwiseShape shape_of(const char* op, const Conv2dArgs& args, bool channels_last,
                        const Tensor& input, const Tensor& output) {
  const auto axis = [&](int d) {
    check_count(op, "the height and the width with the kernel's reach",
                input.size(2 + d) + output.size(2 + d) * args.stride[d] + args.reach(d));
    return ConvAxis{input.size(2 + d), output.size(2 + d), args.kernel_size[d],
                    args.stride[d],    args.padding[d],    args.dilation[d]};
  };
  const int64_t channels = input.size(1);
  check_count(op, "the number of planes", input.size(0) * channels);
  for (const Tensor* t : {&input, &output}) {
    check_count(op, "the elements of an image", channels * t->size(2) * t->size(3));
  }
  check_count(op, "the weight's elements", channels * args.kernel_size[0] * args.kernel_size[1]);
  return {dtype_of(input), channels_last, input.size(0), channels, axis(0), axis(1)};
}

// The vector, which must outlive the launch, dense.
ChannelVector vector_of(std::optional<Tensor>& vector) {
  if (!vector) return {nullptr, Dtype::kFloat32};
  vector = dense(*vector, false);
  return {vector->const_data_ptr(), dtype_of(*vector)};
}

void forward(const DepthwiseConv2dCall& call) {
  constexpr const char* op = "fastseg::depthwise_conv2d";
  std::optional<Tensor> bias = call.bias, scale = call.scale, shift = call.shift;
  const DepthwiseConv2d job{shape_of(op, call.args, call.channels_last, call.x, call.y),
                            call.x.const_data_ptr(),
                            call.weight.const_data_ptr(),
                            {vector_of(bias), vector_of(scale), vector_of(shift)},
                            call.residual ? call.residual->const_data_ptr() : nullptr,
                            call.activation,
                            call.y.mutable_data_ptr(),
                            /*transposed=*/false};
  launch_beside(call.x, op, [&](cudaStream_t stream) { return depthwise_conv2d(job, stream); });
}

void input_grad(const DepthwiseConv2dInputGradCall& call) {
  constexpr const char* op = "fastseg::depthwise_conv2d_input_grad";
  const DepthwiseConv2d job{shape_of(op, call.args, call.channels_last, call.out, call.grad),
                            call.grad.const_data_ptr(),
                            call.weight.const_data_ptr(),
                            {},
                            nullptr,
                            Activation::none,
                            call.out.mutable_data_ptr(),
                            /*transposed=*/true};
  launch_beside(call.grad, op, [&](cudaStream_t stream) { return depthwise_conv2d(job, stream); });
}

void weight_grad(const DepthwiseConv2dWeightGradCall& call) {
  constexpr const char* op = "fastseg::depthwise_conv2d_weight_grad";
  DepthwiseWeightGrad job{shape_of(op, call.args, call.channels_last, call.x, call.grad),
                          call.x.const_data_ptr(), call.grad.const_data_ptr(),
                          call.out.mutable_data_ptr(), nullptr};
  const ScalarType sums_type =
      call.x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor sums = torch::stable::new_empty(
      call.x, {depthwise_weight_grad_runs(job) * call.out.numel()}, sums_type);
  job.sums = sums.mutable_data_ptr();
  launch_beside(call.x, op,
                [&](cudaStream_t stream) { return depthwise_conv2d_weight_grad(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::depthwise_conv2d_ops;
  using namespace fastseg::cuda;
  m.impl("depthwise_conv2d", TORCH_BOX(&ops::depthwise_conv2d<forward>));
  m.impl("depthwise_conv2d_input_grad", TORCH_BOX(&ops::depthwise_conv2d_input_grad<input_grad>));
  m.impl("depthwise_conv2d_weight_grad",
         TORCH_BOX(&ops::depthwise_conv2d_weight_grad<weight_grad>));
}
