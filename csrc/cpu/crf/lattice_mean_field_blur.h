#pragma once
// The blur of a mean field's lattices, which is done so often that its order is worked out before.
//
// Along an axis the vertices make chains, from each to the next: out = in + side (in[back] +
// in[forward]) in place needs a chain's rows once, one after another, where the blur between two
// buffers (permutohedral_blur.h) reads each three times. A vertex alone in its chain is left as it
// is: of a sparse lattice that is most of them.

#include <cstdint>
#include <vector>

#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/memory/buffer.h"
#include "cpu/simd/simd_level.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

class BlurChains {
 public:
  BlurChains() = default;
  BlurChains(const LatticeView<float>& lattice, const TaskRunner& tasks);

  // The vertices of all chains of two and more along an axis, chain after chain; the last of each
  // as ~vertex.
  const LargeVector<int32_t>& along(int axis) const { return chains_[axis]; }

 private:
  std::vector<LargeVector<int32_t>> chains_;
};

// Blurs rows of `pitch` floats (mean_field_pitch) in place along whole chains, given as `count`
// entries of BlurChains::along.
#define FASTSEG_BLUR_CHAINS \
  void blur_chains(const int32_t* chains, int64_t count, float side, int64_t pitch, float* rows)
FASTSEG_DECLARE_KERNEL(FASTSEG_BLUR_CHAINS)
#undef FASTSEG_BLUR_CHAINS

// rows = (rows + others) / 2, of so many floats.
#define FASTSEG_MEAN_OF void mean_of(const float* others, int64_t floats, float* rows)
FASTSEG_DECLARE_KERNEL(FASTSEG_MEAN_OF)
#undef FASTSEG_MEAN_OF

}  // namespace fastseg::cpu
