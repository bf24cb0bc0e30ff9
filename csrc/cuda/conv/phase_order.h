#pragma once
// An axis in the order in which a kernel of dilation d sees it: 0, d, 2d, ..., 1, 1 + d, ... Each
// run of one remainder is a phase. Taps of a position are its neighbours in this order, up to the
// ends of its phase, where padding begins; so at every rate a convolution that keeps the size is
// one of rate 1, and its tiles are full.

#include <algorithm>
#include <cstdint>

#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

// A position's coordinate, and how many positions of its phase lie ahead of it and behind it.
struct PhasePlace {
  int coordinate, before, after;
};

class PhaseOrder {
 public:
  // 0 < size < 2^30; 0 < dilation.
  PhaseOrder(int64_t size, int64_t dilation)
      : step_(static_cast<int>(std::min(size, dilation))),
        long_phases_(static_cast<int>(size % step_)),
        shorter_(size / step_),
        longer_(size / step_ + 1),
        size_(static_cast<int>(size)) {}

  FASTSEG_HOST_DEVICE int size() const { return size_; }

  // 0 <= position < size.
  FASTSEG_HOST_DEVICE PhasePlace operator[](int position) const {
    const int in_long = long_phases_ * longer_;
    if (position < in_long) return place(position, longer_, 0);
    return place(position - in_long, shorter_, long_phases_);
  }

 private:
  FASTSEG_HOST_DEVICE PhasePlace place(int position, const FastDivisor& length, int first) const {
    const int phase = position / length, index = position - phase * length;
    return {first + phase + index * step_, index, length - 1 - index};
  }

  int step_, long_phases_;
  FastDivisor shorter_, longer_;
  int size_;
};

}  // namespace fastseg::cuda
