#pragma once
// What a loss knows of each pixel on a GPU: its target, and numbers in maps of any strides.

#include <cstdint>

#include "common/head/class_ids.h"

namespace fastseg::cuda {

// Numbers (N, H, W) of the losses' dtype and any strides, 0 among them; none where data is null.
struct PixelMap {
  const void* data;
  int64_t stride_n, stride_h, stride_w;

  template <class F>
  FASTSEG_HOST_DEVICE F at(int64_t n, int64_t y, int64_t x) const {
    return static_cast<const F*>(data)[n * stride_n + y * stride_h + x * stride_w];
  }
};

// The pixels' classes (N, H, W), dense.
struct TargetMap {
  const void* data;
  IdType type;
  ClassIds ids;
};

}  // namespace fastseg::cuda
