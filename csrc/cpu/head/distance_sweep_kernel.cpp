// The first pass of the distance transform, along columns: from a zero on, distances count up.
//
// Floor: a byte of mask read in each of the two kernels; a comparison, a choice and an addition an
// element. Loops over the columns of a row are what the compiler vectorises.

#include <algorithm>

#include "cpu/head/distance_transform.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class U>
void distance_extents(const MaskStrip<U>& strip, int32_t* __restrict first,
                      int32_t* __restrict last) {
  std::fill(first, first + strip.row, kNowhere);
  std::fill(last, last + strip.row, -kNowhere);
  for (int64_t r = strip.begin; r < strip.end; ++r) {
    const U* __restrict mask = strip.mask + (r - strip.begin) * strip.row;
    const int32_t here = static_cast<int32_t>(r);
    for (int64_t i = 0; i < strip.row; ++i) {
      const bool zero = (mask[i] & strip.bits) == 0;
      last[i] = zero ? here : last[i];
      first[i] = zero && here < first[i] ? here : first[i];
    }
  }
}

template <class U>
void distance_before(const MaskStrip<U>& strip, const int32_t* above, int32_t* before) {
  const int64_t row = strip.row;
  for (int64_t i = 0; i < row; ++i) {
    const bool zero = (strip.mask[i] & strip.bits) == 0;
    before[i] = zero ? 0 : static_cast<int32_t>(strip.begin) - above[i];
  }
  for (int64_t r = 1; r < strip.end - strip.begin; ++r) {
    const U* __restrict mask = strip.mask + r * row;
    const int32_t* __restrict previous = before + (r - 1) * row;
    int32_t* __restrict here = before + r * row;
    for (int64_t i = 0; i < row; ++i) {
      here[i] = (mask[i] & strip.bits) == 0 ? 0 : previous[i] + 1;
    }
  }
}

#define FASTSEG_INSTANTIATE(U)                                                \
  template void distance_extents<U>(const MaskStrip<U>&, int32_t*, int32_t*); \
  template void distance_before<U>(const MaskStrip<U>&, const int32_t*, int32_t*);
FASTSEG_INSTANTIATE(uint8_t)
FASTSEG_INSTANTIATE(uint16_t)
FASTSEG_INSTANTIATE(uint32_t)
FASTSEG_INSTANTIATE(uint64_t)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
