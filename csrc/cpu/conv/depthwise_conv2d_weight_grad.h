#pragma once
// The gradient of a depthwise convolution's weight: what its kernels take.

#include <cstdint>
#include <vector>

#include "common/conv/conv2d_epilogue.h"
#include "cpu/conv/conv2d_taps.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// out[tap, c] = sum over images and live outputs (i, j) of x[n, c, row, column] grad[n, c, i, j].
// Pointers are dense, of one layout.
template <class T>
struct DepthwiseWeightGrad {
  using F = typename Conv2dEpilogue<T>::F;

  TapAxis rows, columns;  // of the outputs
  int64_t kernel_height, kernel_width;
  int64_t batch, channels;
  const T* x;
  const T* grad;

  int64_t taps() const { return kernel_height * kernel_width; }
};

// In the layout (N, C, H, W). Task t is the channel t.
template <class T>
struct ContiguousDepthwiseWeightGrad : DepthwiseWeightGrad<T> {
  T* out;  // (C, taps)
};

// In the layout (N, H, W, C). Task t is a block of channels of a band of rows of an image: blocks
// come first, then bands, then images.
template <class T>
struct ChannelsLastDepthwiseWeightGrad : DepthwiseWeightGrad<T> {
  std::vector<TapRow> order;  // of the rows
  int64_t blocks, bands;
  typename DepthwiseWeightGrad<T>::F* partial;  // (batch * bands, taps, C), zeros
};

FASTSEG_DECLARE_KERNEL(template <class T> void depthwise_weight_grad_contiguous(
    const ContiguousDepthwiseWeightGrad<T>& op, int64_t begin, int64_t end))
FASTSEG_DECLARE_KERNEL(template <class T> void depthwise_weight_grad_channels_last(
    const ChannelsLastDepthwiseWeightGrad<T>& op, int64_t begin, int64_t end))

}  // namespace fastseg::cpu
