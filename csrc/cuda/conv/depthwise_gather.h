#pragma once
// The geometry of depthwise convolutions of any kernel, stride, padding and dilation.

#include "cuda/conv/depthwise_conv2d.h"
#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

struct GatherAxis {
  int kernel, dilation, padding;
  FastDivisor stride;
  int sources;  // the coordinates that are read
  int outputs;  // those that are made
  bool transposed;

  GatherAxis(const ConvAxis& a, bool reads_outputs)
      : kernel(static_cast<int>(a.kernel)),
        dilation(static_cast<int>(a.dilation)),
        padding(static_cast<int>(a.padding)),
        stride(a.stride),
        sources(static_cast<int>(reads_outputs ? a.outputs : a.size)),
        outputs(static_cast<int>(reads_outputs ? a.size : a.outputs)),
        transposed(reads_outputs) {}

  // What output `o` reads as its tap `tap`, or -1. Transposed: the output of the convolution that
  // has read coordinate `o` as its tap.
  __device__ int source(int o, int tap) const {
    int at;
    if (transposed) {
      const int from = o + padding - tap * dilation;
      if (from < 0) return -1;
      at = from / stride;
      if (at * stride != from) return -1;
    } else {
      at = o * stride - padding + tap * dilation;
    }
    return at < sources && at >= 0 ? at : -1;
  }
};

}  // namespace fastseg::cuda
