#pragma once
// The codes that the kernels read, one or four of them in a byte (common/pool/packed_codes.h).

#include <cstdint>

namespace fastseg::cuda {

// In the layout of the pooled tensor: (planes, h, w) or, with lanes = C, (N, h, w, C).
struct Codes {
  const uint8_t* data;
  bool packed;
  bool channels_last;  // packed: four channels share a byte, else four windows of a row
};

}  // namespace fastseg::cuda
