#pragma once
// What the terms of a mean field mean, once for the CPU and CUDA: compatibilities, normalisations,
// the order of positions as features, and labels that are ruled out. Without torch.

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace fastseg {

// How the labels of a term interact: logits += w F (potts, one value w), logits -= mu F (diagonal,
// L values) or logits -= mu @ F (full, (L, L) row by row, taken as it is: not symmetrised). A
// kind's number is that of the dimensions of its tensor.
struct Compatibility {
  enum class Kind : int { potts = 0, diagonal = 1, full = 2 };
  Kind kind;
  const float* values;

  // How many values there are.
  int64_t size(int64_t labels) const {
    return kind == Kind::potts ? 1 : kind == Kind::diagonal ? labels : labels * labels;
  }

  // What F of a label is multiplied by on its way to that label's logit, where no matrix mixes
  // them.
  FASTSEG_HOST_DEVICE float scale(int64_t label) const {
    return kind == Kind::potts ? values[0] : -values[label];
  }
};

// Which sides of a filter K have factors n of the points.
enum class Normalization : int { none = 0, before = 1, after = 2, symmetric = 3 };

FASTSEG_HOST_DEVICE bool has_factor_before(Normalization normalization) {
  return normalization == Normalization::before || normalization == Normalization::symmetric;
}
FASTSEG_HOST_DEVICE bool has_factor_after(Normalization normalization) {
  return normalization == Normalization::after || normalization == Normalization::symmetric;
}

// The factor n of a point, on the sides that have one. response: K 1 there.
FASTSEG_HOST_DEVICE float point_factor(Normalization normalization, float response) {
  constexpr float kTiny = 1e-20f;  // pydensecrf's
  return 1.f /
         (normalization == Normalization::symmetric ? sqrtf(response + kTiny) : response + kTiny);
}

// The plane of features that the positions along an axis are: x, y of an image (H, W), but z, y, x
// of a volume (D, H, W). It is pydensecrf's order, on which a lattice depends.
FASTSEG_HOST_DEVICE int position_plane(int axes, int axis) { return axes == 2 ? 1 - axis : axis; }

// The logit of a label that is ruled out: its exponential is zero, sums with it stay finite.
inline constexpr float kRuledOut = -1e30f;

// The least logit, messages being added, of a label that is not ruled out.
inline constexpr float kLeastLogit = 0.5f * kRuledOut;

}  // namespace fastseg
