#pragma once
// What the functions that the CPU loops and the CUDA kernels share are marked with.

#if defined(__CUDACC__)
#define FASTSEG_HOST_DEVICE __host__ __device__ __forceinline__
#define FASTSEG_UNROLL _Pragma("unroll")
#else
#define FASTSEG_HOST_DEVICE inline
#define FASTSEG_UNROLL _Pragma("GCC unroll 16")
#endif
