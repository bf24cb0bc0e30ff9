#pragma once
// What the kernels of vertices have in common: a launch serves several lattices side by side.

#include <algorithm>

#include "cuda/crf/permutohedral_blur.h"
#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

inline constexpr int kVertexThreads = 256;

// Blocks of a launch whose parts may be far smaller than their limits: enough for every processor.
inline constexpr unsigned kWalkingBlocks = 4096;

// Parts of a launch, each a number of blocks' places for each copy of its rows.
template <class Part, int kMax>
struct Parts {
  int count = 0;
  bool bounded = false;
  int ends[kMax];  // places of this part and those ahead
  FastDivisor blocks_a_copy[kMax];
  Part parts[kMax];

  void add(const Part& part, const RowShape& shape) {
    const DeviceCount& vertices = part.vertices;
    bounded |= vertices.exact != nullptr;
    const int64_t packs = (int64_t{vertices.most} + 1) * shape.packs;
    const int64_t blocks = (packs + kVertexThreads - 1) / kVertexThreads;
    blocks_a_copy[count] = FastDivisor(blocks);
    ends[count] = static_cast<int>(places() + blocks * shape.copies);
    parts[count++] = part;
  }
  FASTSEG_HOST_DEVICE int places() const { return count == 0 ? 0 : ends[count - 1]; }
  unsigned blocks() const {
    const unsigned all = static_cast<unsigned>(places());
    return bounded ? std::min(all, kWalkingBlocks) : all;
  }
};

// Where a thread works.
struct PartPlace {
  int part, copy, index;  // the pack within the copy
};

template <class Part, int kMax>
__device__ inline PartPlace place_in(const Parts<Part, kMax>& op, int block) {
  int part = 0;
  while (block >= op.ends[part]) ++part;
  if (part > 0) block -= op.ends[part - 1];
  const int copy = block / op.blocks_a_copy[part];
  return {part, copy, (block - copy * op.blocks_a_copy[part]) * kVertexThreads + int(threadIdx.x)};
}

// Calls work(part, place) wherever the thread works: block `first` of `stride` that share the
// parts.
template <class Part, int kMax, class Work>
__device__ inline void walk(const Parts<Part, kMax>& op, int first, int stride, const Work& work) {
#pragma unroll 1
  for (int block = first; block < op.places(); block += stride) {
    const PartPlace place = place_in(op, block);
    work(op.parts[place.part], place);
  }
}

}  // namespace fastseg::cuda
