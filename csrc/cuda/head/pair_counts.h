#pragma once
// Counts of pairs of a true and a predicted class, in a table of a block's own in shared memory
// that is added to the result once, or in the result itself. Counts are integers, so that the order
// of the additions does not show.
//
// Label maps are constant over long runs, where all threads would add to one address, one after
// another. So a thread first adds up the equal neighbours among its pixels, and a warp whose pixels
// are all one pair adds them at once.

#include <cstdint>

namespace fastseg::cuda {

using PairCount = unsigned long long;  // of the result; a block's table has 32 bits

inline constexpr int kNoPair = -1;  // of a pixel that is not counted

// Adds the pixels of a warp's threads to counts, each thread's in runs. All lanes meet here.
template <int kPixels, class T>
__device__ inline void add_pairs(const int (&pairs)[kPixels], T* counts) {
  constexpr unsigned kAllLanes = ~0u;
  bool uniform = true;
#pragma unroll
  for (int i = 1; i < kPixels; ++i) uniform &= pairs[i] == pairs[0];
  const int first = __shfl_sync(kAllLanes, pairs[0], 0);
  if (__ballot_sync(kAllLanes, uniform && pairs[0] == first) == kAllLanes) {
    if (threadIdx.x % 32 == 0 && first >= 0) atomicAdd(counts + first, T{32 * kPixels});
    return;
  }
  T run = 0;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    ++run;
    if (i + 1 < kPixels && pairs[i + 1] == pairs[i]) continue;
    if (pairs[i] >= 0) atomicAdd(counts + pairs[i], run);
    run = 0;
  }
}

// All threads meet in this and the next one.
template <int kThreads>
__device__ inline void clear_table(unsigned* table, int cells) {
  for (int i = threadIdx.x; i < cells; i += kThreads) table[i] = 0;
  __syncthreads();
}

template <int kThreads>
__device__ inline void add_table(const unsigned* table, int cells, PairCount* counts) {
  __syncthreads();
  for (int i = threadIdx.x; i < cells; i += kThreads) {
    if (table[i] > 0) atomicAdd(counts + i, PairCount{table[i]});
  }
}

}  // namespace fastseg::cuda
