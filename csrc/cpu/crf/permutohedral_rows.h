#pragma once
// Loops over a row of channels, as permutohedral_blur.h lays it out. For kernels alone.

#include <cstdint>
#include <type_traits>

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// Calls body(std::integral_constant<int, lanes>, c) for parts [c, c + lanes) of a row: full
// registers, then narrower ones. A row of 24 floats is a register of 16 and one of 8.
template <class T, int L = kLanes<T>, class Body>
inline void for_row(int64_t stride, const Body& body, int64_t c = 0) {
  for (; c + L <= stride; c += L) body(std::integral_constant<int, L>{}, c);
  if constexpr (L > 1) {
    if (c < stride) for_row<T, L / 2>(stride, body, c);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
