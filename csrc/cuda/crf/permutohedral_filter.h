#pragma once
// Splat, blur, slice on a permutohedral lattice, and the gradients.

#include <cuda_runtime_api.h>

#include "common/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_order.h"
#include "cuda/crf/permutohedral_view.h"

namespace fastseg::cuda {

// Channels are filtered a chunk at a time, so that memory does not grow with them.
inline constexpr int kChannelChunk = 64;

// The elements of a vertex's or a row's chunk.
inline int64_t chunk_pitch(int64_t channels) {
  return channels == 1 ? 1 : channels < kChannelChunk ? (channels + 3) / 4 * 4 : kChannelChunk;
}

// values and out (images, channels, points), contiguous.
template <class T>
struct FilterJob {
  LatticeView<T> lattice;
  BlurOptions options;
  T gain;
  int channels;
  const T* values;
  T* out;

  // Scratch.
  SplatOrder<T> order;
  T* rows;     // lattice.rows * chunk_pitch
  T* buffers;  // (1 + device_blur_buffers) * (lattice.vertices + 1) * chunk_pitch
};

template <class T>
cudaError_t permutohedral_filter(const FilterJob<T>& job, cudaStream_t stream);

// The gradients of the values (job.out, job.values being those of the filter) and of the weights.
template <class T>
struct FilterGradient {
  const T* grad;
  T* grad_barycentric;  // (images, points, corners)
  T* buffers;           // as many elements as the job's
};

template <class T>
cudaError_t permutohedral_filter_backward(const FilterJob<T>& job, const FilterGradient<T>& op,
                                          cudaStream_t stream);

}  // namespace fastseg::cuda
