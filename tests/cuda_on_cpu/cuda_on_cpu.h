// Runs a .cu file's kernels on the CPU, for tests: g++ -x c++ -include cuda_on_cpu.h kernel.cu
//
// Blocks run one after another, a block's threads as fibers that are switched where CUDA threads
// may meet: at barriers and warp exchanges. What a GPU leaves open is varied, what it forgives is
// refused:
// - threads and blocks start and go on in the order that CUDA_ON_CPU_ORDER names: forward, reverse
//   or shuffled. Kernels must not care: a missing barrier shows as a difference between orders.
// - shared memory starts as NaN bytes and has exactly the launch's size; with AddressSanitizer an
//   access beyond it, or beyond a tensor, ends the process.
// - vector loads and stores must be aligned, all threads of a block must reach a barrier, and all
//   lanes of a warp an exchange. Otherwise, and on a failed FASTSEG_DEVICE_CHECK, the launch ends
//   and cudaGetLastError returns cudaErrorAssert, cudaGetErrorString the reason.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __shared__  // kernels take FASTSEG_DYNAMIC_SHARED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_on_cpu {

// The thread that runs now, and its block's.
struct Place {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  int thread;  // linear in the block
};
const Place& here();

void* shared_memory();

// The calling thread waits for its block.
void wait_for_block();

// Ends the launch.
[[noreturn]] void fail(const std::string& message);

// Runs `body` once for each thread.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Gives all lanes of the warp the words of all lanes.
const uint64_t* exchange(unsigned mask, uint64_t word);

template <class T>
T shuffle(unsigned mask, T value, int source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  const uint64_t* words = exchange(mask, word);
  std::memcpy(&value, &words[source_lane], sizeof value);
  return value;
}

inline int lane() { return here().thread % 32; }

template <class T>
void check_aligned(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) fail("misaligned address");
}

}  // namespace cuda_on_cpu

#define FASTSEG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream),                                                     \
   cuda_on_cpu::launch((grid), (block), (shared_bytes), [&] { kernel(__VA_ARGS__); }))
#define FASTSEG_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(cuda_on_cpu::shared_memory())
#define FASTSEG_DEVICE_CHECK(condition, message)    \
  do {                                              \
    if (!(condition)) cuda_on_cpu::fail((message)); \
  } while (false)

#define threadIdx (cuda_on_cpu::here().thread_index)
#define blockIdx (cuda_on_cpu::here().block_index)
#define blockDim (cuda_on_cpu::here().block_size)
#define gridDim (cuda_on_cpu::here().grid_size)

inline void __syncthreads() { cuda_on_cpu::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::exchange(mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source_lane) {
  return cuda_on_cpu::shuffle(mask, value, source_lane % 32);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return cuda_on_cpu::shuffle(mask, value, cuda_on_cpu::lane() ^ bits);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle(mask, value, lane < delta ? lane : lane - delta);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta) {
  const int lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle(mask, value, lane + delta < 32 ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* words = cuda_on_cpu::exchange(mask, predicate);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(words[i]) << i;
  return votes;
}
inline int __popc(unsigned x) { return std::popcount(x); }

// Threads are switched at barriers and exchanges alone, so these need no atomic instruction.
template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p = before + value;
  return before;
}
template <class T>
T atomicMax(T* p, T value) {
  const T before = *p;
  *p = before < value ? value : before;
  return before;
}

template <class T>
T atomicMin(T* p, T value) {
  const T before = *p;
  *p = value < before ? value : before;
  return before;
}
template <class T>
T atomicOr(T* p, T bits) {
  const T before = *p;
  *p = before | bits;
  return before;
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
  const T before = *p;
  if (before == expected) *p = value;
  return before;
}

template <class T>
T __ldcs(const T* p) {
  cuda_on_cpu::check_aligned(p);
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  cuda_on_cpu::check_aligned(p);
  *p = value;
}
template <class T>
void __stcs(T* p, T value) {
  cuda_on_cpu::check_aligned(p);
  *p = value;
}
