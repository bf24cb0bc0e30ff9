#pragma once
// Pixel-adaptive refinement of one image: its weights, and a pass or its transpose.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/refine/refinement.h"

namespace fastseg::cuda {

inline constexpr int kMaxDilations = 64;  // which kernels get as arguments

// Height times width times channels, or masks, is below 2^30.
template <class T>
struct Refinement {
  int height, width;
  int dilations;
  struct Ring {
    int rows, columns;     // from a pixel to its neighbours, within the image
    T straight, diagonal;  // what is added to the softmax for these neighbours
  } rings[kMaxDilations];
};

// The weights (8 * dilations, H, W) from the image's channels (K, H, W), both of the compute type
// T.
template <class T>
cudaError_t refinement_weights(const Refinement<T>& op, Affinity affinity, int channels,
                               const T* image, T* weights, cudaStream_t stream);

// One pass, or one of the transpose, over planes (planes, H, W) that do not overlap.
template <class T>
cudaError_t refinement_pass(const Refinement<T>& op, bool transposed, int planes, const T* weights,
                            const T* in, T* out, cudaStream_t stream);

}  // namespace fastseg::cuda
