// Runs a .cu file's kernels on the CPU, for tests: g++ -x c++ -include cuda_on_cpu.h kernel.cu
//
// Blocks run one after another, a block's threads as fibers that are switched where CUDA threads
// may meet: at barriers and warp exchanges. What a GPU leaves open is varied, what it forgives is
// refused:
// - threads and blocks start and go on in the order that CUDA_ON_CPU_ORDER names: forward, reverse
//   or shuffled. Kernels must not care: a missing barrier shows as a difference between orders.
// - shared memory starts as NaN bytes and has exactly the launch's size; with AddressSanitizer an
//   access beyond it, or beyond a tensor, ends the process.
// - what is copied asynchronously is there when its thread has waited, not before.
// - vector loads and stores must be aligned, all threads of a block must reach a barrier, and all
//   lanes of a warp an exchange. Otherwise, and on a failed FASTSEG_DEVICE_CHECK, the launch ends
//   and cudaGetLastError returns cudaErrorAssert, cudaGetErrorString the reason.
// trace.h tells what is counted meanwhile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
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

#include "trace.h"

namespace cuda_on_cpu {

// The thread that runs now, and its block's.
struct Place {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  int thread;  // linear in the block
};
const Place& here();

void* shared_memory();
size_t shared_bytes();

// The memory on which the calling thread keeps what a CUDA thread keeps in registers.
struct Stack {
  const char* begin;
  size_t bytes;
};
Stack this_stack();

// The calling thread waits for its block.
void wait_for_block();

// The calling thread's copies to shared memory, which nobody sees before it has waited for them.
void copy_later(void* to, const void* from, size_t bytes);
void finish_copies();

// Ends the launch.
[[noreturn]] void fail(const std::string& message);

// A callable that outlives the launch, on the host's stack, so that no thread reads it from memory
// that could be the device's.
class Body {
 public:
  template <class Call>
  Body(const Call& call)
      : call_(&call), run_([](const void* c) { (*static_cast<const Call*>(c))(); }) {}
  void operator()() const { run_(call_); }

 private:
  const void* call_;
  void (*run_)(const void*);
};

// Runs `body` once for each thread. `kernel` is the function that it calls.
void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body);

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

// Gives all lanes of the warp the words of all lanes. It orders no accesses to memory.
const uint64_t* exchange(unsigned mask, uint64_t word);

template <class T>
CUDA_ON_CPU_UNCOUNTED T shuffle(unsigned mask, T value, int source_lane) {
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

#define FASTSEG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                \
  ((void)(stream), cuda_on_cpu::launch(cuda_on_cpu::address(kernel), (grid), (block), \
                                       (shared_bytes), [&] { kernel(__VA_ARGS__); }))
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
inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::trace::warp_barrier();
  cuda_on_cpu::exchange(mask, 0);
}

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
CUDA_ON_CPU_UNCOUNTED inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint64_t* words = cuda_on_cpu::exchange(mask, predicate);
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(words[i]) << i;
  return votes;
}
inline int __popc(unsigned x) { return std::popcount(x); }

// Threads are switched at barriers and exchanges alone, so these need no atomic instruction.
template <class T>
CUDA_ON_CPU_COUNTED T atomicAdd(T* p, T value) {
  CUDA_ON_CPU_ACCESS(kAtomic, p);
  const T before = *p;
  *p = before + value;
  return before;
}
template <class T>
CUDA_ON_CPU_COUNTED T atomicMax(T* p, T value) {
  CUDA_ON_CPU_ACCESS(kAtomic, p);
  const T before = *p;
  *p = before < value ? value : before;
  return before;
}
template <class T>
CUDA_ON_CPU_COUNTED T atomicMin(T* p, T value) {
  CUDA_ON_CPU_ACCESS(kAtomic, p);
  const T before = *p;
  *p = value < before ? value : before;
  return before;
}
template <class T>
CUDA_ON_CPU_COUNTED T atomicOr(T* p, T bits) {
  CUDA_ON_CPU_ACCESS(kAtomic, p);
  const T before = *p;
  *p = before | bits;
  return before;
}
template <class T>
CUDA_ON_CPU_COUNTED T atomicCAS(T* p, T expected, T value) {
  CUDA_ON_CPU_ACCESS(kAtomic, p);
  const T before = *p;
  if (before == expected) *p = value;
  return before;
}

template <class Word>
CUDA_ON_CPU_COUNTED void copy_word_later(void* to, const void* from) {
  auto* const target = static_cast<Word*>(to);
  const auto* const source = static_cast<const Word*>(from);
  cuda_on_cpu::check_aligned(target);
  cuda_on_cpu::check_aligned(source);
  CUDA_ON_CPU_ACCESS(kLoad, source);
  CUDA_ON_CPU_ACCESS(kStore, target);
  cuda_on_cpu::copy_later(target, source, sizeof(Word));
}
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  if (bytes == 16) return copy_word_later<uint4>(to, from);
  if (bytes == 8) return copy_word_later<uint2>(to, from);
  if (bytes == 4) return copy_word_later<unsigned>(to, from);
  cuda_on_cpu::fail("asynchronous copies move 4, 8 or 16 bytes");
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t groups) {
  if (groups != 0) cuda_on_cpu::fail("all copies are waited for at once");
  cuda_on_cpu::finish_copies();
}

template <class T>
CUDA_ON_CPU_COUNTED T __ldcs(const T* p) {
  cuda_on_cpu::check_aligned(p);
  CUDA_ON_CPU_ACCESS(kLoad, p);
  return *p;
}
template <class T>
CUDA_ON_CPU_COUNTED void __stcg(T* p, T value) {
  cuda_on_cpu::check_aligned(p);
  CUDA_ON_CPU_ACCESS(kStore, p);
  *p = value;
}
template <class T>
CUDA_ON_CPU_COUNTED void __stwb(T* p, T value) {
  cuda_on_cpu::check_aligned(p);
  CUDA_ON_CPU_ACCESS(kStore, p);
  *p = value;
}
template <class T>
CUDA_ON_CPU_COUNTED void __stcs(T* p, T value) {
  cuda_on_cpu::check_aligned(p);
  CUDA_ON_CPU_ACCESS(kStore, p);
  *p = value;
}
