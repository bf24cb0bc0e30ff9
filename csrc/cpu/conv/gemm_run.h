#pragma once
// What the callers of matrix products (cpu/conv/gemm_tile.h) say of their operands.

#include <cstdint>

namespace fastseg::cpu {

inline constexpr int kPanel = 16;  // columns of a packed panel of B: output channels of weights

// A stretch of the depth whose operands lie in one piece: steps [a, a + count) of A's depth against
// the steps [b, b + count) of B's.
struct GemmRun {
  int64_t a, b, count;
};

}  // namespace fastseg::cpu
