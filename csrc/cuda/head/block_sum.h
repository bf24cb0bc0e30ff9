#pragma once
// A block's sum of its threads' numbers, in the same order in every run.

namespace fastseg::cuda {

// All threads meet here; thread 0 gets the sum. `scratch` has a number for each warp.
template <int kThreads>
__device__ inline double block_sum(double mine, double* scratch) {
  for (int bits = 16; bits > 0; bits /= 2) mine += __shfl_xor_sync(~0u, mine, bits);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = mine;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += scratch[warp];
  }
  return sum;
}

}  // namespace fastseg::cuda
