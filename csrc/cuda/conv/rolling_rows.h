#pragma once
// The rows of a window that moves down an image, in registers: a ring of K of them. Registers have
// no numbers at run time, so a loop takes kSteps rows at a time, each of which knows where the ring
// begins. Large kernels move the rows instead, whose code would be K times as long.

namespace fastseg::cuda {

template <int K>
inline constexpr int kSteps = K == 3 ? K : 1;

// After a step: what was next in the ring is first, unless the following step knows it.
template <int K, class F, int N>
__device__ inline void roll(F (&rows)[K][N]) {
  if constexpr (kSteps<K> == 1) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const F first = rows[0][n];
#pragma unroll
      for (int i = 0; i + 1 < K; ++i) rows[i][n] = rows[i + 1][n];
      rows[K - 1][n] = first;
    }
  }
}

}  // namespace fastseg::cuda
