#pragma once
// Depthwise convolution with its epilogue, and its gradients.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/conv/conv2d_epilogue.h"
#include "cuda/dtype.h"

namespace fastseg::cuda {

// An axis of a convolution: output o reads the coordinates o * stride - padding + k * dilation for
// k in [0, kernel). All are below 2^30.
struct ConvAxis {
  int64_t size, outputs, kernel, stride, padding, dilation;

  // Whether output o reads coordinate o and its neighbours at multiples of the dilation.
  bool keeps_size() const { return stride == 1 && 2 * padding == dilation * (kernel - 1); }
};

// What all of them work on: dense tensors in one layout, (N, C, H, W) or (N, H, W, C).
struct DepthwiseShape {
  Dtype dtype;
  bool channels_last;
  int64_t images, channels;
  ConvAxis rows, columns;

  // The size of square kernels that keep the image's size; else 0.
  int64_t square() const {
    const bool keeps = rows.keeps_size() && columns.keeps_size() && rows.kernel == columns.kernel;
    return keeps ? rows.kernel : 0;
  }
};

struct DepthwiseConv2d {
  DepthwiseShape shape;
  const void* x;
  const void* weight;  // (C, kh, kw)
  EpilogueVectors vectors;
  const void* residual;  // of y's shape, or null
  Activation activation;
  void* y;
  bool transposed;  // y is the gradient of the input for that of the output, x
};

cudaError_t depthwise_conv2d(const DepthwiseConv2d& op, cudaStream_t stream);

struct DepthwiseWeightGrad {
  DepthwiseShape shape;
  const void* x;
  const void* grad;
  void* out;   // (C, kh, kw)
  void* sums;  // (runs, kh * kw, C) of the compute type
};

// The number of runs whose sums are kept apart, and added in their order.
int64_t depthwise_weight_grad_runs(const DepthwiseWeightGrad& op);

cudaError_t depthwise_conv2d_weight_grad(const DepthwiseWeightGrad& op, cudaStream_t stream);

}  // namespace fastseg::cuda
