#pragma once
// From the arguments of the convolution ops to what kernels take, with errors that name the
// argument, what came and what was expected.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/conv/conv2d_epilogue.h"
#include "common/tensor_checks.h"

namespace fastseg {

// Output o along an axis reads the coordinates o * stride - padding + k * dilation for k in [0,
// kernel); those outside of the input are padding.
struct Conv2dArgs {
  using Pair = std::array<int64_t, 2>;  // vertical, horizontal

  Pair kernel_size, stride, padding, dilation;

  Conv2dArgs(const char* op, const Pair& kernel, const std::vector<int64_t>& strides,
             const std::vector<int64_t>& pad, const std::vector<int64_t>& dil)
      : kernel_size(kernel),
        stride(pair(op, "stride", strides)),
        padding(pair(op, "padding", pad)),
        dilation(pair(op, "dilation", dil)) {
    FASTSEG_CHECK(kernel[0] > 0 && kernel[0] % 2 == 1 && kernel[1] > 0 && kernel[1] % 2 == 1, op,
                  ": weight must have an odd kernel height and width, got ", to_string(kernel));
    check_positive(op, "stride", stride);
    check_positive(op, "dilation", dilation);
    for (int d = 0; d < 2; ++d) {
      FASTSEG_CHECK(padding[d] >= 0, op, ": padding must not be negative, got ",
                    to_string(padding));
      FASTSEG_CHECK(
          padding[d] <= reach(d), op,
          ": padding must not be larger than the kernel's reach dilation * (kernel - 1) = (",
          reach(0), ", ", reach(1), "), got ", to_string(padding));
    }
  }

  // The distance from the first to the last tap.
  int64_t reach(int axis) const { return dilation[axis] * (kernel_size[axis] - 1); }

  // Of an input of `size`; not positive where the kernel does not fit.
  int64_t outputs(int axis, int64_t size) const {
    const int64_t room = size + 2 * padding[axis] - reach(axis) - 1;
    return room < 0 ? 0 : room / stride[axis] + 1;
  }

  // (height, width) of the output; an error where the kernel does not fit into the input.
  Pair output_size(const char* op, const char* name, int64_t height, int64_t width) const {
    const Pair size{outputs(0, height), outputs(1, width)};
    FASTSEG_CHECK(size[0] > 0 && size[1] > 0, op, ": ", name, " of ", height, " x ", width,
                  " is too small for a kernel of ", to_string(kernel_size), ", padding ",
                  to_string(padding), " and dilation ", to_string(dilation));
    return size;
  }

  static Pair pair(const char* op, const char* name, const std::vector<int64_t>& v) {
    FASTSEG_CHECK(v.size() == 1 || v.size() == 2, op, ": ", name,
                  " must be one integer or two, got ", to_string(v));
    return {v.front(), v.back()};
  }

 private:
  static constexpr int64_t kLimit = int64_t{1} << 30;  // so that sums and products stay exact

  static void check_positive(const char* op, const char* name, const Pair& v) {
    FASTSEG_CHECK(v[0] > 0 && v[1] > 0 && v[0] < kLimit && v[1] < kLimit, op, ": ", name,
                  " must be at least 1 and below 2^30, got ", to_string(v));
  }
};

// An (N, C, H, W) image, empty only where N is 0.
inline void check_conv2d_image(const char* op, const char* name, const Tensor& x) {
  FASTSEG_CHECK(x.dim() == 4, op, ": ", name, " must have the shape (N, C, H, W), got ",
                to_string(x.sizes()));
  FASTSEG_CHECK(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": ", name,
                " must not be empty but for the batch, got shape ", to_string(x.sizes()));
  check_float(x, op, name);
}

inline void check_groups(const char* op, int64_t groups, const char* x_name, int64_t channels,
                         const char* grad_name, int64_t out_channels) {
  FASTSEG_CHECK(groups > 0, op, ": groups must be at least 1, got ", groups);
  FASTSEG_CHECK(channels % groups == 0, op, ": groups = ", groups, " must divide the ", channels,
                " channels of ", x_name);
  FASTSEG_CHECK(out_channels % groups == 0, op, ": groups = ", groups, " must divide the ",
                out_channels, " channels of ", grad_name);
}

// The device and the dtype of x.
inline void check_alike(const char* op, const char* name, const Tensor& t, const char* x_name,
                        const Tensor& x) {
  check_same_device(x, x_name, t, name, op);
  FASTSEG_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have ", x_name,
                "'s dtype ", x.scalar_type(), ", got ", t.scalar_type());
}

inline bool has_shape(const Tensor& x, const std::vector<int64_t>& shape) {
  return std::equal(x.sizes().begin(), x.sizes().end(), shape.begin(), shape.end());
}

inline Activation parse_activation(const char* op, const std::string& name) {
  constexpr const char* kNames[] = {"", "relu", "relu6", "leaky_relu", "silu", "hardswish"};
  for (int i = 0; i < 6; ++i) {
    if (name == kNames[i]) return static_cast<Activation>(i);
  }
  FASTSEG_CHECK(false, op,
                ": activation must be one of ('relu', 'relu6', 'leaky_relu', 'silu', 'hardswish') "
                "or none, got '",
                name, "'");
}

// The operands of the epilogue but for the activation; `output` is the output's shape.
inline void check_epilogue(const char* op, const Tensor& x, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                           const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& output) {
  const auto check_vector = [&](const char* name, const std::optional<Tensor>& t) {
    if (!t) return;
    FASTSEG_CHECK(has_shape(*t, {output[1]}), op, ": ", name, " must have the shape (Co,) = (",
                  output[1], ",), got ", to_string(t->sizes()));
    check_float(*t, op, name);
    check_same_device(x, "x", *t, name, op);
  };
  check_vector("bias", bias);
  check_vector("scale", scale);
  check_vector("shift", shift);
  if (residual) {
    FASTSEG_CHECK(has_shape(*residual, output), op, ": residual must have the output's shape ",
                  to_string(output), ", got ", to_string(residual->sizes()));
    check_alike(op, "residual", *residual, "x", x);
  }
}

}  // namespace fastseg
