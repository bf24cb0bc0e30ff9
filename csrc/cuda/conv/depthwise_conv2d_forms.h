#pragma once
// The kernels that a depthwise convolution is computed by. Each form takes what it is made for and
// says whether it did.

#include <type_traits>

#include "cuda/arithmetic.h"
#include "cuda/conv/depthwise_conv2d.h"

namespace fastseg::cuda {

// What every form of the convolution reads and writes, and what follows its sums.
template <class T>
struct DepthwiseTensors {
  const T* x;
  const T* weight;
  const T* residual;
  T* y;
  EpilogueVectors vectors;
  Activation activation;

  explicit DepthwiseTensors(const DepthwiseConv2d& op)
      : x(static_cast<const T*>(op.x)),
        weight(static_cast<const T*>(op.weight)),
        residual(static_cast<const T*>(op.residual)),
        y(static_cast<T*>(op.y)),
        vectors(op.vectors),
        activation(op.activation) {}
};

// Square kernels of 3, 5 and 7 that keep the size, not in float64.
bool depthwise_conv2d_channels_last(const DepthwiseConv2d& op, cudaStream_t stream);
bool depthwise_conv2d_contiguous(const DepthwiseConv2d& op, cudaStream_t stream);
// All others.
void depthwise_conv2d_gather(const DepthwiseConv2d& op, cudaStream_t stream);

// The same for the weight's gradient. Each has its own number of runs; 0: it does not take it.
int64_t depthwise_weight_grad_channels_last_runs(const DepthwiseWeightGrad& op);
void depthwise_weight_grad_channels_last(const DepthwiseWeightGrad& op, cudaStream_t stream);
int64_t depthwise_weight_grad_contiguous_runs(const DepthwiseWeightGrad& op);
void depthwise_weight_grad_contiguous(const DepthwiseWeightGrad& op, cudaStream_t stream);
int64_t depthwise_weight_grad_gather_runs(const DepthwiseWeightGrad& op);
void depthwise_weight_grad_gather(const DepthwiseWeightGrad& op, cudaStream_t stream);

// body(T{}, std::integral_constant<int, K>{}) for a kernel of K x K that keeps the size; else
// false. Not for float64, of which GPUs have few units.
template <class Body>
bool with_square(const DepthwiseShape& shape, const Body& body) {
  bool took = false;
  dispatch(shape.dtype, [&](auto zero) {
    if constexpr (sizeof zero < sizeof(double)) {
      switch (shape.square()) {
        case 3:
          took = body(zero, std::integral_constant<int, 3>{});
          break;
        case 5:
          took = body(zero, std::integral_constant<int, 5>{});
          break;
        case 7:
          took = body(zero, std::integral_constant<int, 7>{});
          break;
      }
    }
  });
  return took;
}

}  // namespace fastseg::cuda
