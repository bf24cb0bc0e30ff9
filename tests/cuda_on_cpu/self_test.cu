// A block's sum by all that the shim offers, and the same with one mistake each.

#include "cuda/launch.h"
#include "cuda/shared_memory.h"

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

// Rows of 32 floats, read at a distance from each other, through shared memory at another.
__global__ void strided(const float* in, float* out, int global_stride, int shared_stride) {
  FASTSEG_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  row[t * shared_stride] = in[(blockIdx.x * blockDim.x + t) * global_stride];
  __syncwarp();
  out[blockIdx.x * blockDim.x + t] = row[t * shared_stride];
}

template <int kNumber>
__global__ void numbered(int* out) {
  if (threadIdx.x == 0) *out = kNumber;
}

template <int kNumber>
const char* launch(int* out, dim3 grid, int threads, int shared_bytes) {
  FASTSEG_LAUNCH(numbered<kNumber>, grid, threads, shared_bytes, nullptr, out);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Of what threads of a warp, of a block, of a grid, leave for each other.
enum Meeting { kOfWarp, kOfBlock, kOfGrid };

__global__ void hand_over(int* out, Meeting meeting, bool ordered) {
  FASTSEG_DYNAMIC_SHARED(int, given);
  const int t = threadIdx.x, threads = blockDim.x;
  if (meeting == kOfGrid) {
    if (!ordered) out[t] = t;
    if (ordered) atomicAdd(out + t, t);
    return;
  }
  given[t] = t;
  if (ordered && meeting == kOfBlock) __syncthreads();
  if (meeting == kOfWarp) __shfl_sync(~0u, t, 0);  // orders no memory
  if (ordered && meeting == kOfWarp) __syncwarp();
  const int other = meeting == kOfWarp ? t ^ 1 : threads - 1 - t;
  out[blockIdx.x * threads + t] = __shfl_sync(~0u, given[other], t % 32);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void run_strided(const float* in, float* out,
                                                                   int blocks, int global_stride,
                                                                   int shared_stride) {
  FASTSEG_LAUNCH(strided, blocks, 32, 32 * shared_stride * sizeof(float), nullptr, in, out,
                 global_stride, shared_stride);
}

extern "C" __attribute__((visibility("default"))) void run_hand_over(int* out, int meeting,
                                                                     bool ordered) {
  FASTSEG_LAUNCH(hand_over, 2, 64, 64 * sizeof(int), nullptr, out, static_cast<Meeting>(meeting),
                 ordered);
}

// Null if the launch went well, else the reason.
extern "C" __attribute__((visibility("default"))) const char* run_sum(const int* in, int* out,
                                                                      int count, int mistake) {
  FASTSEG_LAUNCH(sum, 3, 128, 4 * sizeof(int), nullptr, in, out, count,
                 static_cast<Mistake>(mistake));
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Null if the launch of a kernel went well, else the reason. Another kernel may have more shared
// memory.
extern "C" __attribute__((visibility("default"))) const char* run_numbered(int* out, int blocks_y,
                                                                           int threads,
                                                                           int shared_bytes) {
  if (fastseg::cuda::allow_shared(&numbered<2>, 1 << 16) != cudaSuccess) return "no attribute";
  if (const char* why = launch<2>(out, 1, 32, 1 << 16)) return why;
  return launch<1>(out, dim3(1, blocks_y), threads, shared_bytes);
}
