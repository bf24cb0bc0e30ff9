#pragma once
// What nvcc and the tests' CUDA-on-CPU shim (tests/cuda_on_cpu) spell differently. The shim is
// included ahead of everything and defines these macros itself.

#if defined(__CUDACC__)

#include <cassert>

#define FASTSEG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

// A block's shared memory, as many bytes as its launch asked for. Kernels have no other: the shim
// knows these bytes and finds reads ahead of the first write and accesses beyond the end.
#define FASTSEG_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char fastseg_shared[]; \
  T* const name = reinterpret_cast<T*>(fastseg_shared)

// Prints the message, the block and the thread, and fails the stream with cudaErrorAssert, also
// under NDEBUG. Without printf: its buffer does not always survive a trap, and its arguments cost
// each kernel a stack frame. `message` begins with the op's name.
#define FASTSEG_DEVICE_CHECK(condition, message)                                 \
  do {                                                                           \
    if (!(condition)) __assert_fail((message), "csrc/cuda", __LINE__, __func__); \
  } while (false)

#endif
