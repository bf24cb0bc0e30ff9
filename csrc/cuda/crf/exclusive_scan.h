#pragma once
// Prefix sums of counts on the device.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastseg::cuda {

// The elements of `sums` that a scan of `count` values takes.
int64_t exclusive_scan_sums(int64_t count);

// values[i] becomes the sum of the values ahead of it, values[count] that of all; so `values` has
// count + 1 elements, count >= 0. The sum of all is below 2^31.
cudaError_t exclusive_scan(int* values, int64_t count, int* sums, cudaStream_t stream);

}  // namespace fastseg::cuda
