#pragma once
// What the ops of both gradients of a convolution by columns check and derive.

#include "common/conv/conv2d_args.h"
#include "cpu/conv/conv2d_grad_shape.h"
#include "cpu/conv/image_layout.h"

namespace fastseg::cpu {

inline void check_groups(const char* op, int64_t groups, const char* x_name, int64_t channels,
                         const char* grad_name, int64_t out_channels) {
  FASTSEG_CHECK(groups > 0, op, ": groups must be at least 1, got ", groups);
  FASTSEG_CHECK(channels % groups == 0, op, ": groups = ", groups, " must divide the ", channels,
                " channels of ", x_name);
  FASTSEG_CHECK(out_channels % groups == 0, op, ": groups = ", groups, " must divide the ",
                out_channels, " channels of ", grad_name);
}

// `channels`: those of the convolution's input, in all groups. `size`: its height and width.
inline Conv2dGradShape grad_shape(const Tensor& grad, int64_t channels, const PerAxis& size,
                                  const Conv2dArgs& args, int64_t groups) {
  return {grad.size(0),          groups,      channels / groups,
          grad.size(1) / groups, size,        {grad.size(2), grad.size(3)},
          args.kernel_size,      args.stride, args.padding,
          args.dilation};
}

}  // namespace fastseg::cpu
