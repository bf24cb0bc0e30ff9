#pragma once
// Copies from global to shared memory that a thread begins without waiting for them: as many bytes
// are on their way as a block has room for, and none of them takes a register.

#if defined(__CUDACC__)
#include <cuda_pipeline.h>
#endif

namespace fastseg::cuda {

// Both are aligned to kBytes: 4, 8 or 16.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, kBytes);
}

// The calling thread's copies have arrived; others see them after a barrier.
__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

}  // namespace fastseg::cuda
