#pragma once
// What the CPU kernels of fastseg::upsample_softmax_sums and its gradient work on.

#include <cstdint>

#include "cpu/head/pixel_map.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

template <class T>
struct SoftmaxSums {
  using F = typename UpsampledLogits<T>::F;

  UpsampledLogits<T> logits;
  TargetMap target;
  bool squared;
};

template <class T>
struct SoftmaxSumsForward {
  using F = typename UpsampledLogits<T>::F;

  SoftmaxSums<T> of;
  F* normalizer;  // (N, H, W): s of softmax_cells.h
  double* sums;   // of each task: [intersection, probability, count][class]
};

template <class T>
struct SoftmaxSumsBackward {
  using F = typename UpsampledLogits<T>::F;

  SoftmaxSums<T> of;
  PixelMap<F> normalizer;
  const F *intersection, *probability;  // gradients, (N, C)
  F* sums;                              // of each task, band_sums.h
};

// Tasks [begin, end): task t is band t % bands of image t / bands.
FASTSEG_DECLARE_KERNEL(template <class T>
                       void upsample_softmax_sums(const SoftmaxSumsForward<T>& job, int64_t begin,
                                                  int64_t end);
                       template <class T>
                       void upsample_softmax_sums_backward(const SoftmaxSumsBackward<T>& job,
                                                           int64_t begin, int64_t end))

}  // namespace fastseg::cpu
