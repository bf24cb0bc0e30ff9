#pragma once
// Sums over the threads of a block.

namespace fastseg::cuda {

inline constexpr int kMaxWarps = 32;

struct BlockSums {
  int before;  // of the threads ahead of this one
  int total;
};

// For all threads of a block of whole warps. partial: shared, kMaxWarps ints.
__device__ inline BlockSums block_scan(int value, int* partial) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
  for (int delta = 1; delta < 32; delta *= 2) {
    const int lower = __shfl_up_sync(~0u, sum, delta);
    if (lane >= delta) sum += lower;
  }
  __syncthreads();  // some may still read what the call before wrote
  if (lane == 31) partial[warp] = sum;
  __syncthreads();
  BlockSums sums{sum - value, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    if (w < warp) sums.before += partial[w];
    sums.total += partial[w];
  }
  return sums;
}

}  // namespace fastseg::cuda
