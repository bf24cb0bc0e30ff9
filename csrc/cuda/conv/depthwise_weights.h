#pragma once
// A thread's weights of a depthwise convolution in registers, its epilogue's factor in them.

#include "cuda/conv/conv2d_epilogue.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

// Of V channels and a kernel of K x K.
template <class T, int K, int V>
class PackWeights {
 public:
  using F = Compute<T>;

  // From weight (C, K, K), whose taps are taken in reverse order where `flip`.
  __device__ void load(const T* weight, const EpilogueVectors& vectors, int channel, bool flip) {
    const T* const from = weight + int64_t{channel} * (K * K);
#pragma unroll
    for (int i = 0; i < K * K; ++i) {
      const Pack<T, V> pack = load_pack<V>(from + i * V);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const int element = i * V + k;
        of_tap_[element % (K * K)][element / (K * K)] = to_compute(pack.v[k]);
      }
    }
    const ChannelEpilogue<F, V> epilogue(vectors, channel);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      start_[k] = epilogue.start[k];
#pragma unroll
      for (int tap = 0; tap < K * K; ++tap) of_tap_[tap][k] *= epilogue.scale[k];
    }
    if (!flip) return;
#pragma unroll
    for (int tap = 0; tap < K * K / 2; ++tap) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const F kept = of_tap_[tap][k];
        of_tap_[tap][k] = of_tap_[K * K - 1 - tap][k];
        of_tap_[K * K - 1 - tap][k] = kept;
      }
    }
  }

  __device__ void begin(F (&sum)[V]) const {
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] = start_[k];
  }

  __device__ F of(int tap) const { return of_tap_[tap][0]; }  // where V is 1
  __device__ F start() const { return start_[0]; }

  // sum += the tap's weights * x.
  __device__ void add(const F (&x)[V], int tap, F (&sum)[V]) const {
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] += of_tap_[tap][k] * x[k];
  }

 private:
  F of_tap_[K * K][V], start_[V];
};

}  // namespace fastseg::cuda
