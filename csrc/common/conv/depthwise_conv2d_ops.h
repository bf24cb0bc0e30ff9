#pragma once
// fastseg::depthwise_conv2d and its gradients but for the kernels: arguments checked, inputs dense,
// outputs allocated.

#include <optional>
#include <string>
#include <vector>

#include "common/conv/conv2d_args.h"

namespace fastseg {

// x and y are dense in one layout: (N, C, H, W) or, channels_last, (N, H, W, C).
struct DepthwiseConv2dCall {
  Conv2dArgs args;
  bool channels_last;
  Tensor x;
  Tensor weight;                                       // (C, 1, kh, kw), contiguous
  std::optional<Tensor> bias, scale, shift, residual;  // residual in y's layout
  Activation activation;
  Tensor y;
};

// The gradient of x from that of y.
struct DepthwiseConv2dInputGradCall {
  Conv2dArgs args;
  bool channels_last;
  Tensor grad;
  Tensor weight;  // (C, 1, kh, kw), contiguous
  Tensor out;     // (N, C, *input_size), in grad's layout
};

struct DepthwiseConv2dWeightGradCall {
  Conv2dArgs args;
  bool channels_last;
  Tensor x, grad;
  Tensor out;  // (C, 1, kh, kw), contiguous
};

namespace depthwise_conv2d_ops {

using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

inline void check_weight(const char* op, const char* x_name, const Tensor& x,
                         const Tensor& weight) {
  FASTSEG_CHECK(weight.dim() == 4 && weight.size(0) == x.size(1) && weight.size(1) == 1, op,
                ": weight must have the shape (C, 1, kh, kw) with the ", x.size(1), " channels of ",
                x_name, ", got ", to_string(weight.sizes()));
  check_alike(op, "weight", weight, x_name, x);
}

inline void check_grad(const char* op, const Tensor& grad, const Ints& output) {
  FASTSEG_CHECK(has_shape(grad, output), op, ": grad must have the output's shape ",
                to_string(output), ", got ", to_string(grad.sizes()));
}

template <void (*kernel)(const DepthwiseConv2dCall&)>
Tensor depthwise_conv2d(const Tensor& x, const Tensor& weight, Optional bias, Optional scale,
                        Optional shift, Optional residual, Ints stride, Ints padding, Ints dilation,
                        std::string activation) {
  constexpr const char* op = "fastseg::depthwise_conv2d";
  check_conv2d_image(op, "x", x);
  check_weight(op, "x", x, weight);
  const Conv2dArgs args(op, {weight.size(2), weight.size(3)}, stride, padding, dilation);
  const auto plane = args.output_size(op, "x", x.size(2), x.size(3));
  const Ints size{x.size(0), x.size(1), plane[0], plane[1]};
  check_epilogue(op, x, bias, scale, shift, residual, size);
  const bool channels_last = is_channels_last(x);
  if (residual) residual = dense(*residual, channels_last);
  const DepthwiseConv2dCall call{args,
                                 channels_last,
                                 dense(x, channels_last),
                                 dense(weight, false),
                                 bias,
                                 scale,
                                 shift,
                                 residual,
                                 parse_activation(op, activation),
                                 empty_like_layout(x, size, x.scalar_type(), channels_last)};
  kernel(call);
  return call.y;
}

template <void (*kernel)(const DepthwiseConv2dInputGradCall&)>
Tensor depthwise_conv2d_input_grad(const Tensor& grad, const Tensor& weight, Ints input_size,
                                   Ints stride, Ints padding, Ints dilation) {
  constexpr const char* op = "fastseg::depthwise_conv2d_input_grad";
  check_conv2d_image(op, "grad", grad);
  check_weight(op, "grad", grad, weight);
  const Conv2dArgs args(op, {weight.size(2), weight.size(3)}, stride, padding, dilation);
  const auto input = Conv2dArgs::pair(op, "input_size", input_size);
  const auto plane = args.output_size(op, "input_size", input[0], input[1]);
  check_grad(op, grad, {grad.size(0), grad.size(1), plane[0], plane[1]});
  const bool channels_last = is_channels_last(grad);
  const Ints size{grad.size(0), grad.size(1), input[0], input[1]};
  const DepthwiseConv2dInputGradCall call{
      args, channels_last, dense(grad, channels_last), dense(weight, false),
      empty_like_layout(grad, size, grad.scalar_type(), channels_last)};
  kernel(call);
  return call.out;
}

template <void (*kernel)(const DepthwiseConv2dWeightGradCall&)>
Tensor depthwise_conv2d_weight_grad(const Tensor& x, const Tensor& grad, Ints kernel_size,
                                    Ints stride, Ints padding, Ints dilation) {
  constexpr const char* op = "fastseg::depthwise_conv2d_weight_grad";
  check_conv2d_image(op, "x", x);
  const Conv2dArgs args(op, Conv2dArgs::pair(op, "kernel_size", kernel_size), stride, padding,
                        dilation);
  const auto plane = args.output_size(op, "x", x.size(2), x.size(3));
  check_grad(op, grad, {x.size(0), x.size(1), plane[0], plane[1]});
  check_alike(op, "grad", grad, "x", x);
  const bool channels_last = is_channels_last(x);
  const Ints size{x.size(1), 1, args.kernel_size[0], args.kernel_size[1]};
  const DepthwiseConv2dWeightGradCall call{args, channels_last, dense(x, channels_last),
                                           dense(grad, channels_last),
                                           empty_like_layout(x, size, x.scalar_type(), false)};
  kernel(call);
  return call.out;
}

}  // namespace depthwise_conv2d_ops
}  // namespace fastseg
