#pragma once
// What the CPU kernels of fastseg::upsample_argmax work on.

#include <cstdint>
#include <vector>

#include "cpu/head/upsample.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

template <class T>
struct UpsampleArgmax {
  using F = typename UpsampledLogits<T>::F;

  UpsampledLogits<T> logits;
  int64_t height, width;  // of the class map
  int64_t first_row;      // of (N * H, W) in memory
  void* classes;          // rows from the first on
  int bytes;              // of an id: 1, 2, 4 or 8
  F* confidence;          // of these rows: the softmax's largest probability; null for none
};

// Tasks [begin, end): task t is band t % bands of image t / bands.
FASTSEG_DECLARE_KERNEL(template <class T> void upsample_argmax(const UpsampleArgmax<T>& job,
                                                               int64_t begin, int64_t end))

}  // namespace fastseg::cpu
