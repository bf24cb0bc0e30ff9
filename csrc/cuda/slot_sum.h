#pragma once
// Sums over the slots of a block, whose threads are numbered (kSlots, kLanes), in their order.

namespace fastseg::cuda {

// All threads meet here; those of slot 0 get the sum over their lane. `scratch` has a number for
// each thread.
template <int kSlots, int kLanes, class F>
__device__ inline F slot_sum(F mine, F* scratch) {
  scratch[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x >= kLanes) return mine;
  for (int slot = 1; slot < kSlots; ++slot) mine += scratch[slot * kLanes + threadIdx.x];
  return mine;
}

}  // namespace fastseg::cuda
