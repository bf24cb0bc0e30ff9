#pragma once
// How the kernels read codes, one or four of them in a byte.

#include <cstdint>

#include "common/pool/packed_codes.h"
#include "cuda/pool/codes.h"
#include "cuda/vector_access.h"

namespace fastseg::cuda {

// The code of one window; `row` counts the rows of windows of all planes.
__device__ inline int read_code(const Codes& codes, int64_t row, int windows, int lanes, int j,
                                int c) {
  if (!codes.packed) return codes.data[(row * windows + j) * lanes + c];
  const int position = codes.channels_last ? c : j;
  const int64_t first =
      codes.channels_last ? (row * windows + j) * packed_size(lanes) : row * packed_size(windows);
  return unpack_code(codes.data[first + position / kCodesPerByte], position % kCodesPerByte);
}

// V codes from `column` of a row of `row_codes`, windows times lanes. Packed along C, lanes is a
// multiple of four. Returns the bitwise or of the codes: above 3 if one of them is.
template <int V>
__device__ inline int read_codes_2x2(const Codes& codes, int64_t row, int64_t row_codes, int column,
                                     uint8_t (&out)[V]) {
  int any = 0;
  if (!codes.packed) {
    load(codes.data + row * row_codes + column, out);
#pragma unroll
    for (int k = 0; k < V; ++k) any |= out[k];
    return any;
  }
  uint8_t bytes[(V + kCodesPerByte - 1) / kCodesPerByte];
  load(codes.data + row * packed_size(row_codes) + column / kCodesPerByte, bytes);
  const int first = V < kCodesPerByte ? column % kCodesPerByte : 0;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    out[k] = unpack_code(bytes[k / kCodesPerByte], first + k % kCodesPerByte);
  }
  return 0;
}

}  // namespace fastseg::cuda
