#pragma once
// The points that a block of the lattice's construction handles.

#include "cuda/crf/permutohedral_lattice.h"

namespace fastseg::cuda {

struct Group {
  int image;
  int tile;    // -1: the image's origin
  int point;   // the first, of all images' with their origins
  int points;  // how many
};

struct Groups {
  int points, padded, tile_points, tiles, per_image;

  explicit Groups(const LatticeShape& shape)
      : points(static_cast<int>(shape.points)),
        padded(static_cast<int>(shape.padded())),
        tile_points(static_cast<int>(shape.tile_points)),
        tiles(static_cast<int>(shape.tiles)),
        per_image(static_cast<int>(shape.tiles + shape.origins)) {}

  __device__ Group operator[](int group) const {
    const int image = group / per_image, k = group - image * per_image;
    if (k == tiles) return {image, -1, image * padded + points, 1};
    const int begin = k * tile_points, rest = points - begin;
    return {image, image * tiles + k, image * padded + begin,
            rest < tile_points ? rest : tile_points};
  }
};

inline unsigned lattice_blocks(int64_t threads) {
  return static_cast<unsigned>((threads + kLatticeThreads - 1) / kLatticeThreads);
}

__device__ inline int64_t lattice_thread() {
  return int64_t{blockIdx.x} * kLatticeThreads + threadIdx.x;
}

}  // namespace fastseg::cuda
