#pragma once
// A stretch of the depth of a matrix product whose operands lie in one piece.

#include <cstdint>

namespace fastseg::cpu {

// Steps [a, a + count) of A's depth against the steps [b, b + count) of B's.
struct GemmRun {
  int64_t a, b, count;
};

}  // namespace fastseg::cpu
