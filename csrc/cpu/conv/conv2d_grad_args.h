#pragma once
// What the ops of a convolution's gradients that are products of matrices check and derive.

#include "common/conv/conv2d_args.h"
#include "cpu/conv/conv2d_grad_shape.h"
#include "cpu/conv/image_layout.h"

namespace fastseg::cpu {

// `channels`: those of the convolution's input, in all groups. `size`: its height and width.
inline Conv2dGradShape grad_shape(const Tensor& grad, int64_t channels, const PerAxis& size,
                                  const Conv2dArgs& args, int64_t groups) {
  return {grad.size(0),          groups,      channels / groups,
          grad.size(1) / groups, size,        {grad.size(2), grad.size(3)},
          args.kernel_size,      args.stride, args.padding,
          args.dilation};
}

// Checks the operands of a weight's gradient: float32, a grad of the output's shape, alike.
inline Conv2dGradShape check_weight_grad(const char* op, const Tensor& x, const Tensor& grad,
                                         const Conv2dArgs& args, int64_t groups) {
  check_conv2d_image(op, "x", x);
  check_float32(x, op, "x");
  check_conv2d_image(op, "grad", grad);
  check_alike(op, "grad", grad, "x", x);
  check_groups(op, groups, "x", x.size(1), "grad", grad.size(1));
  const auto plane = args.output_size(op, "x", x.size(2), x.size(3));
  const std::vector<int64_t> output{x.size(0), grad.size(1), plane[0], plane[1]};
  FASTSEG_CHECK(has_shape(grad, output), op, ": grad must have the output's shape ",
                to_string(output), ", got ", to_string(grad.sizes()));
  return grad_shape(grad, x.size(1), {x.size(2), x.size(3)}, args, groups);
}

}  // namespace fastseg::cpu
