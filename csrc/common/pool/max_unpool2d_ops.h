#pragma once
// fastseg::max_unpool2d, its backward and fastseg::max_pool2d_backward but for the kernels, which
// the CPU and the CUDA bindings bring: arguments checked, inputs dense, outputs allocated.

#include <cstdint>
#include <vector>

#include "common/pool/max_unpool2d_args.h"

namespace fastseg {

// Moves the elements of `input` to `out` where args.indices say, or picks them from there. Both are
// dense in the layout of the indices.
struct UnpoolCall {
  const UnpoolArgs& args;
  Tensor input;
  Tensor out;
};

// Values (or gradients) from the windows to the plane.
using PlaceKernel = void (*)(const UnpoolCall&, bool accumulate);

// Elements of the plane, picked by the windows.
using PickKernel = void (*)(const UnpoolCall&);

namespace max_unpool2d_ops {

using Ints = std::vector<int64_t>;

inline UnpoolCall prepare(const UnpoolArgs& args, const Tensor& input, int64_t height,
                          int64_t width) {
  return {args, dense(input, args.channels_last),
          empty_like_layout(input, with_plane(input, height, width), input.scalar_type(),
                            args.channels_last)};
}

template <PlaceKernel place>
Tensor max_unpool2d(const Tensor& values, const Tensor& indices, Ints output_size, Ints kernel_size,
                    Ints stride, Ints padding) {
  constexpr const char* op = "fastseg::max_unpool2d";
  check_image(values, op, "values", /*may_lack_channels=*/true);
  check_float(values, op, "values");
  const UnpoolArgs args(op, values, "values", indices,
                        {op, kernel_size, stride, padding, Ints{1, 1}}, output_size[0],
                        output_size[1], height_of(values), width_of(values), kNotPacked);
  const UnpoolCall call = prepare(args, values, args.pool.h.size, args.pool.w.size);
  place(call, /*accumulate=*/false);
  return call.out;
}

template <PlaceKernel place>
Tensor max_pool2d_backward(const Tensor& grad, const Tensor& codes, Ints input_size,
                           Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                           int64_t packed_dim) {
  constexpr const char* op = "fastseg::max_pool2d_backward";
  check_image(grad, op, "grad");
  check_float(grad, op, "grad");
  const UnpoolArgs args(op, grad, "grad", codes, {op, kernel_size, stride, padding, dilation},
                        input_size[0], input_size[1], height_of(grad), width_of(grad), packed_dim);
  FASTSEG_CHECK(args.by_code, op, ": codes must be uint8, got ", codes.scalar_type());
  const UnpoolCall call = prepare(args, grad, args.pool.h.size, args.pool.w.size);
  place(call, /*accumulate=*/true);
  return call.out;
}

template <PickKernel pick>
Tensor max_unpool2d_backward(const Tensor& grad, const Tensor& indices, Ints pooled_size,
                             Ints kernel_size, Ints stride, Ints padding, Ints dilation,
                             int64_t packed_dim) {
  constexpr const char* op = "fastseg::max_unpool2d_backward";
  check_image(grad, op, "grad", /*may_lack_channels=*/true);
  check_float(grad, op, "grad");
  const UnpoolArgs args(op, grad, "grad", indices, {op, kernel_size, stride, padding, dilation},
                        height_of(grad), width_of(grad), pooled_size[0], pooled_size[1],
                        packed_dim);
  const UnpoolCall call = prepare(args, grad, args.pool.h.windows, args.pool.w.windows);
  pick(call);
  return call.out;
}

}  // namespace max_unpool2d_ops
}  // namespace fastseg
