#pragma once
// The phases of a convolution's stride along one axis: padded coordinates with the same remainder.
// A tap reads one phase only, for neighbouring outputs neighbouring places of it. Without torch.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastseg::cpu {

struct TapPhases {
  int64_t stride, padding, dilation;
  std::vector<int64_t> remainders;  // those that some tap reads
  int64_t size;                     // of a phase

  TapPhases(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t outputs)
      : stride(stride),
        padding(padding),
        dilation(dilation),
        size(outputs + (kernel - 1) * dilation / stride) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      if (phase(tap) == count()) remainders.push_back(tap * dilation % stride);
    }
  }

  int64_t count() const { return static_cast<int64_t>(remainders.size()); }

  // The number of the phase that a tap reads, and where it reads for the first output.
  int64_t phase(int64_t tap) const {
    const auto found = std::find(remainders.begin(), remainders.end(), tap * dilation % stride);
    return found - remainders.begin();
  }
  int64_t first(int64_t tap) const { return tap * dilation / stride; }

  // The coordinate in x of the first place of a phase; it may lie in the padding.
  int64_t begin(int64_t phase) const { return remainders[phase] - padding; }
};

}  // namespace fastseg::cpu
