#pragma once
// Division of ints in [0, 2^31) by a divisor known at the launch: a multiplication, an addition and
// a shift instead of some twenty instructions.
//
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994: with
// s = ceil(log2(d)) and m = floor(2^32 (2^s - d) / d) + 1, n / d = (n + floor(m n / 2^32)) >> s.

#include <cstdint>

#include "common/host_device.h"

namespace fastseg::cuda {

class FastDivisor {
 public:
  // 0 < divisor < 2^31.
  explicit FastDivisor(int64_t divisor = 1) : divisor_(static_cast<int>(divisor)) {
    while ((int64_t{1} << shift_) < divisor) ++shift_;
    const uint64_t excess = (uint64_t{1} << shift_) - static_cast<uint64_t>(divisor);
    multiplier_ = static_cast<uint32_t>((excess << 32) / static_cast<uint64_t>(divisor) + 1);
  }

  FASTSEG_HOST_DEVICE operator int() const { return divisor_; }

  friend FASTSEG_HOST_DEVICE int operator/(int n, const FastDivisor& d) {
    const uint32_t dividend = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>((uint64_t{dividend} * d.multiplier_) >> 32);
    return static_cast<int>((dividend + high) >> d.shift_);
  }
  friend FASTSEG_HOST_DEVICE int operator%(int n, const FastDivisor& d) {
    return n - n / d * d.divisor_;
  }

 private:
  int divisor_;
  int shift_ = 0;
  uint32_t multiplier_;
};

}  // namespace fastseg::cuda
