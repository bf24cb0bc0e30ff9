#pragma once
// The target of a pixel, as kernels read it.

#include "cuda/head/pixel_maps.h"
#include "cuda/launch.h"

namespace fastseg::cuda {

inline constexpr int kIgnored = -1;

// The class of a pixel, or kIgnored. `message` is that of a target that is neither.
__device__ inline int target_at(const TargetMap& map, int64_t pixel, const char* message) {
  int64_t slot = 0;
  dispatch_id(map.type, [&](auto zero) {
    slot = map.ids.slot(static_cast<const decltype(zero)*>(map.data)[pixel]);
  });
  FASTSEG_DEVICE_CHECK(slot != map.ids.none(), message);
  return slot == map.ids.ignored() ? kIgnored : static_cast<int>(slot);
}

}  // namespace fastseg::cuda
