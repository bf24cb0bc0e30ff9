#pragma once
// What the CPU kernels of fastseg::upsample_cross_entropy and its gradient work on.

#include <cstdint>

#include "cpu/head/pixel_map.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

template <class T>
struct CrossEntropy {
  using F = typename UpsampledLogits<T>::F;

  UpsampledLogits<T> logits;
  TargetMap target;
  const F* weight;         // of a class; null for 1
  PixelMap<F> weight_map;  // of a pixel; none for 1
  F label_smoothing;
};

// Sums over the pixels of a band.
struct CrossEntropySums {
  double loss, weight;
};

template <class T>
struct CrossEntropyForward {
  using F = typename UpsampledLogits<T>::F;

  CrossEntropy<T> of;
  F* normalizer;           // (N, H, W): s of softmax_cells.h
  F* loss;                 // (N, H, W); null for none
  CrossEntropySums* sums;  // of each task
};

template <class T>
struct CrossEntropyBackward {
  using F = typename UpsampledLogits<T>::F;

  CrossEntropy<T> of;
  PixelMap<F> normalizer;
  PixelMap<F> grad;  // of the pixels' losses
  F* sums;           // of each task, band_sums.h
};

// Tasks [begin, end): task t is band t % bands of image t / bands.
FASTSEG_DECLARE_KERNEL(template <class T>
                       void upsample_cross_entropy(const CrossEntropyForward<T>& job, int64_t begin,
                                                   int64_t end);
                       template <class T>
                       void upsample_cross_entropy_backward(const CrossEntropyBackward<T>& job,
                                                            int64_t begin, int64_t end))

}  // namespace fastseg::cpu
