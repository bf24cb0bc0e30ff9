#pragma once
// The copy of a few floats, for which a call of memcpy would take longer than the copy itself.

#include <cstdint>

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

inline void copy_floats(const float* from, int64_t count, float* to) {
  for_blocks<kLanes<float>>(0, count, [&](auto lanes, int64_t i) {
    using Part = Simd<float, decltype(lanes)::value>;
    Part::store(to + i, Part::load(from + i));
  });
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
