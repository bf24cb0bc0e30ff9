// What a launch does, told to trace.cpp if the library is compiled with CUDA_ON_CPU_TRACE; else
// nothing.
//
// g++'s -fsanitize=thread calls a function at each access to memory (trace_hooks.cpp). The shim's
// own functions, whose accesses are one instruction of the device each, tell theirs themselves.
#pragma once

#include "trace_kind.h"

namespace cuda_on_cpu::trace {

#ifdef CUDA_ON_CPU_TRACE

void launch_begins(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes);
void launch_ends();
void block_begins();
void block_ends();
void barrier();                               // the calling thread arrives at its block's
void warp_barrier();                          // at its warp's
void copied(const char* what, size_t bytes);  // by the runtime: "memset" or "memcpy"
void synchronized();                          // the host waits for the device

// An access by the calling thread, in the instruction behind `place`.
void access(Kind kind, const volatile void* p, int bytes, const void* place);
// A volatile load: what it reads, others may change meanwhile, by atomic operations.
void volatile_load(const volatile void* p, int bytes, const void* place);

// Of the shim's functions: those that tell their accesses themselves, and those whose accesses a
// device does in registers.
#define CUDA_ON_CPU_COUNTED __attribute__((no_sanitize_thread, noinline))
#define CUDA_ON_CPU_UNCOUNTED __attribute__((no_sanitize_thread))
#define CUDA_ON_CPU_ACCESS(kind, p)                                      \
  cuda_on_cpu::trace::access(cuda_on_cpu::trace::kind, (p), sizeof *(p), \
                             __builtin_return_address(0))

#else

inline void launch_begins(const void*, dim3, dim3, size_t) {}
inline void launch_ends() {}
inline void block_begins() {}
inline void block_ends() {}
inline void barrier() {}
inline void warp_barrier() {}
inline void copied(const char*, size_t) {}
inline void synchronized() {}

#define CUDA_ON_CPU_COUNTED
#define CUDA_ON_CPU_UNCOUNTED
#define CUDA_ON_CPU_ACCESS(kind, p)

#endif

}  // namespace cuda_on_cpu::trace
