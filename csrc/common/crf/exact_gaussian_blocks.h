#pragma once
// How points are sorted into blocks for the exact Gaussian filter on the CPU.

#include <cstdint>

namespace fastseg::exact_gaussian {

inline constexpr int64_t kBlock = 64;  // queries of a task, and the most keys of a tile
inline constexpr int64_t kLeaf = 16;   // keys that are taken or left out together

// The number of n points once they are padded to whole blocks.
inline constexpr int64_t padded_points(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

}  // namespace fastseg::exact_gaussian
