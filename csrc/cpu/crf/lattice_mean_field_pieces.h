#pragma once
// Rows of labels in pieces that fit the registers. For kernels alone.

#include <cstdint>
#include <type_traits>

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// A piece of C labels of a row, in registers.
template <int C>
struct Piece {
  static constexpr int kRegister = FASTSEG_SIMD_BYTES / static_cast<int>(sizeof(float));
  static constexpr int kWidth = C % kRegister == 0 ? kRegister : C < 8 ? C : 8;
  static constexpr int kVectors = C / kWidth;
  using V = Lanes<float, kWidth>;

  V v[kVectors];

  static Piece load(const float* p) {
    Piece out;
    for (int k = 0; k < kVectors; ++k) out.v[k] = read<V>(p + k * kWidth);
    return out;
  }
  void store(float* p) const {
    for (int k = 0; k < kVectors; ++k) write(p + k * kWidth, v[k]);
  }
  void scale(float s) {
    for (int k = 0; k < kVectors; ++k) v[k] *= s;
  }
  // this += w * row
  void add(float w, const float* row) {
    for (int k = 0; k < kVectors; ++k) v[k] += w * read<V>(row + k * kWidth);
  }
  // row += w * this
  void add_to(float* row, float w) const {
    for (int k = 0; k < kVectors; ++k) {
      write(row + k * kWidth, read<V>(row + k * kWidth) + w * v[k]);
    }
  }
};

// Calls body(std::integral_constant<int, C>, first label) for the pieces of a row. kPitch: the
// pitch where it is known at compile time, else 0.
template <int kPitch, class Body>
void for_pieces(int64_t pitch, const Body& body) {
  if constexpr (kPitch > 0) {
    body(std::integral_constant<int, kPitch>{}, int64_t{0});
  } else {
    int64_t label = 0;
    for (; label + 32 <= pitch; label += 32) body(std::integral_constant<int, 32>{}, label);
    if (pitch - label == 24) body(std::integral_constant<int, 24>{}, label);
    if (pitch - label == 16) body(std::integral_constant<int, 16>{}, label);
    if (pitch - label == 8) body(std::integral_constant<int, 8>{}, label);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
