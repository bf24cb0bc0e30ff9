#pragma once
// Four codes of 2x2 windows in one byte: code k of a group of four sits in bits 2k and 2k + 1.
//
// What a backward pass keeps of a 2x2 pooling: a quarter of a byte for each window, where torch
// keeps an int64. Groups never straddle rows: contiguous codes (N, C, h, w) are packed along w into
// (N, C, h, ceil(w / 4)), channels_last ones along C into (N, ceil(C / 4), h, w), channels_last.

#include <cstdint>

#include "common/host_device.h"

namespace fastseg {

inline constexpr int kCodesPerByte = 4;

FASTSEG_HOST_DEVICE int64_t packed_size(int64_t codes) {
  return (codes + kCodesPerByte - 1) / kCodesPerByte;
}

FASTSEG_HOST_DEVICE constexpr uint8_t unpack_code(uint8_t packed, int position) {
  return (packed >> (2 * position)) & 3;
}

// Packs `count` <= 4 codes; the rest of the byte is zero.
FASTSEG_HOST_DEVICE uint8_t pack_codes(const uint8_t* codes, int64_t count) {
  unsigned byte = 0;
  for (int k = 0; k < count; ++k) byte |= (codes[k] & 3u) << (2 * k);
  return static_cast<uint8_t>(byte);
}

}  // namespace fastseg
