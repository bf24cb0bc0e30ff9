#pragma once
// fastseg::max_pool2d and fastseg::batch_norm_relu_max_pool2d but for the kernels, which the CPU
// and the CUDA bindings bring: arguments checked, inputs dense, outputs allocated.

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common/pool/pool2d_args.h"

namespace fastseg {

// Tensors are dense in one layout: (N, C, H, W) or (N, H, W, C).
struct MaxPool2dCall {
  const char* op;
  Pool2d pool;
  bool channels_last;
  int64_t batch, channels;
  Tensor x;
  std::optional<Tensor> scale, shift;  // (C,): double for double, float for all else
  Tensor values, codes;

  int64_t lanes() const { return channels_last ? channels : 1; }
  int64_t planes() const { return channels_last ? batch : batch * channels; }
};

using MaxPool2dKernel = void (*)(const MaxPool2dCall&);

namespace max_pool2d_ops {

using Ints = std::vector<int64_t>;

inline MaxPool2dCall prepare(const char* op, const Tensor& x, const Pool2dArgs& args,
                             bool ceil_mode) {
  check_image(x, op, "x");
  check_float(x, op, "x");
  const Pool2d pool = args.pooled(op, height_of(x), width_of(x), ceil_mode);
  const bool channels_last = is_channels_last(x);
  const Ints size = with_plane(x, pool.h.windows, pool.w.windows);
  return {op,
          pool,
          channels_last,
          batch_of(x),
          channels_of(x),
          dense(x, channels_last),
          std::nullopt,
          std::nullopt,
          empty_like_layout(x, size, x.scalar_type(), channels_last),
          empty_like_layout(x, size, ScalarType::Byte, channels_last)};
}

inline Tensor per_channel(const MaxPool2dCall& call, const char* name, const Tensor& t) {
  FASTSEG_CHECK(t.dim() == 1 && t.size(0) == call.channels, call.op, ": ", name,
                " must be (C,) = (", call.channels, ",) as x has channels, got shape ",
                to_string(t.sizes()));
  check_float(t, call.op, name);
  check_same_device(call.x, "x", t, name, call.op);
  const bool wide = call.x.scalar_type() == ScalarType::Double;
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  return dense(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype), false);
}

template <MaxPool2dKernel kernel>
std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, Ints kernel_size, Ints stride, Ints padding,
                                      Ints dilation, bool ceil_mode) {
  constexpr const char* op = "fastseg::max_pool2d";
  const MaxPool2dCall call =
      prepare(op, x, {op, kernel_size, stride, padding, dilation}, ceil_mode);
  kernel(call);
  return {call.values, call.codes};
}

template <MaxPool2dKernel kernel>
std::tuple<Tensor, Tensor> batch_norm_relu_max_pool2d(const Tensor& x, const Tensor& scale,
                                                      const Tensor& shift, Ints kernel_size,
                                                      Ints stride, Ints padding, Ints dilation,
                                                      bool ceil_mode) {
  constexpr const char* op = "fastseg::batch_norm_relu_max_pool2d";
  MaxPool2dCall call = prepare(op, x, {op, kernel_size, stride, padding, dilation}, ceil_mode);
  call.scale = per_channel(call, "scale", scale);
  call.shift = per_channel(call, "shift", shift);
  kernel(call);
  return {call.values, call.codes};
}

}  // namespace max_pool2d_ops
}  // namespace fastseg
