#pragma once
// Marks the functions that the CPU loops and the CUDA kernels share.

#if defined(__CUDACC__)
#define FASTSEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTSEG_HOST_DEVICE inline
#endif
