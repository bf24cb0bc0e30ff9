#pragma once
// The taps of a pooling window as offsets into memory: worked out once for all windows that lie
// whole in the plane, anew for each that does not.

#include <cstdint>

#include "common/pool/pool2d.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu::FASTSEG_SIMD {

struct Taps {
  int count = 0;
  int first_code = 0;   // also of a window without a tap in the plane
  int64_t offset[256];  // in elements from the window's origin
  uint8_t code[256];
};

// `lanes` neighbouring elements make one position: 1 in a plane, C in a channels_last image.
class WindowTaps {
 public:
  WindowTaps(const Pool2d& pool, int64_t lanes) : pool_(pool), lanes_(lanes) {
    collect(whole_, 0, pool.h.kernel, 0, pool.w.kernel);
  }

  // Where the first tap of window (i, j) is, or would be: in the padding it is ahead of the plane.
  int64_t origin(int64_t i, int64_t j) const {
    return (pool_.h.start(i) * pool_.w.size + pool_.w.start(j)) * lanes_;
  }

  // All taps, of a window that lies whole in the plane: the tap with code k is at index k.
  const Taps& whole() const { return whole_; }

  // The taps of window (i, j) inside the plane, in raster order. Valid until the next call.
  const Taps& inside(int64_t i, int64_t j) {
    const PoolAxis &h = pool_.h, &w = pool_.w;
    if (h.whole(i) && w.whole(j)) return whole_;
    collect(border_, h.first_tap(i), h.end_tap(i), w.first_tap(j), w.end_tap(j));
    return border_;
  }

 private:
  void collect(Taps& taps, int first_ki, int end_ki, int first_kj, int end_kj) const {
    taps.count = 0;
    taps.first_code = first_ki * pool_.w.kernel + first_kj;
    for (int ki = first_ki; ki < end_ki; ++ki) {
      for (int kj = first_kj; kj < end_kj; ++kj, ++taps.count) {
        taps.offset[taps.count] =
            (int64_t{ki} * pool_.h.dilation * pool_.w.size + int64_t{kj} * pool_.w.dilation) *
            lanes_;
        taps.code[taps.count] = static_cast<uint8_t>(ki * pool_.w.kernel + kj);
      }
    }
  }

  const Pool2d pool_;
  const int64_t lanes_;
  Taps whole_, border_;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
