// A block's sum by all that the shim offers, and the same with one mistake each.

#include "cuda/launch.h"

namespace {

enum Mistake { kNone, kNoBarrier, kDivergentBarrier, kPastShared, kMisaligned, kLaneLeft };

__global__ void sum(const int* in, int* out, int count, Mistake mistake) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const int t = threadIdx.x, threads = blockDim.x;
  int mine = 0;
  for (int i = blockIdx.x * threads + t; i < count; i += gridDim.x * threads) mine += in[i];
  // Warps by exchanges, then their first lanes through shared memory.
  for (int bits = 16; bits > 1; bits /= 2) mine += __shfl_xor_sync(~0u, mine, bits);
  mine += __shfl_down_sync(~0u, mine, 1);
  FASTSEG_DEVICE_CHECK(__popc(__ballot_sync(~0u, t % 2 == 0)) == 16, "a ballot counts all lanes");
  if (mistake == kLaneLeft && t == 3) return;
  mine = __shfl_sync(~0u, mine, 0);
  __syncwarp();
  if (t % 32 == 0) partial[t / 32 + (mistake == kPastShared ? threads / 32 : 0)] = mine;
  if (mistake == kMisaligned) {
    __stcs(reinterpret_cast<int2*>(partial + 1), make_int2(0, 0));
  }
  if (mistake == kDivergentBarrier ? t < 32 : mistake != kNoBarrier) __syncthreads();
  if (t == 0) {
    int total = 0;
    for (int w = 0; w < threads / 32; ++w) total += partial[w];
    atomicAdd(out, total);
    atomicMax(out + 1, total);
  }
}

}  // namespace

// Null if the launch went well, else the reason.
extern "C" __attribute__((visibility("default"))) const char* run_sum(const int* in, int* out,
                                                                      int count, int mistake) {
  FASTSEG_LAUNCH(sum, 3, 128, 4 * sizeof(int), nullptr, in, out, count,
                 static_cast<Mistake>(mistake));
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
