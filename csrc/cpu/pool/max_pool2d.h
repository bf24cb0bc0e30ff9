#pragma once
// The arguments of max-pooling's kernels, and their declarations.
#include <cstdint>

#include "common/pool/pool2d.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Max-pooling of one tensor, optionally behind relu(x * scale + shift) per channel.
// All pointers are dense, in the same layout: (N, C, H, W) or, channels_last, (N, H, W, C).
template <class T, class Scale>
struct MaxPool2d {
  Pool2d pool;
  int64_t channels;
  bool channels_last;
  bool stream;  // the outputs outgrow the caches: write past them
  const T* x;
  const Scale* scale;  // (C,), or null for plain pooling
  const Scale* shift;
  T* values;
  uint8_t* codes;
};

// Computes the rows [begin, end) of the outputs, counted over (N, C, h) or (N, h).
#define FASTSEG_MAX_POOL2D(T, Scale) \
  void max_pool2d_rows(const MaxPool2d<T, Scale>& op, int64_t begin, int64_t end)
FASTSEG_DECLARE_KERNEL(template <class T, class Scale> FASTSEG_MAX_POOL2D(T, Scale))
#undef FASTSEG_MAX_POOL2D

}  // namespace fastseg::cpu
