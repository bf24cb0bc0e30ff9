#pragma once
// Four codes of 2x2 windows into one byte (common/pool/packed_codes.h).

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastseg::cuda {

// `runs` runs of `run` codes each; a run starts on a byte of its own. Both are below 2^30.
cudaError_t pack_codes(const uint8_t* codes, int64_t runs, int64_t run, uint8_t* out,
                       cudaStream_t stream);

}  // namespace fastseg::cuda
