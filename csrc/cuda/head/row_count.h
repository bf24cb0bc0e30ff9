#pragma once
// Loops over as many rows of pixels as there are: a band has eight of them where logits are
// upsampled eightfold, four where it is fourfold.

#include <cstdint>
#include <type_traits>

namespace fastseg::cuda {

// Calls body(std::integral_constant<int, R>()) with the least R among kMost, kMost / 2, ... that is
// at least `rows`, or one of the ends. Each R is code and registers of its own.
template <int kMost, int kLeast, class Body>
__device__ inline void with_rows(int64_t rows, const Body& body) {
  if constexpr (kMost > kLeast) {
    if (rows <= kMost / 2) return with_rows<kMost / 2, kLeast>(rows, body);
  }
  body(std::integral_constant<int, kMost>());
}

}  // namespace fastseg::cuda
