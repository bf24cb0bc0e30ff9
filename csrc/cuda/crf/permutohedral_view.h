#pragma once
// A permutohedral lattice as the CUDA kernels see it: fastseg/_core/permutohedral.py
// has the format. Entries (B * N * (d + 1)), rows and vertices are each fewer than 2^30.

#include <cstdint>

#include "common/host_device.h"
#include "cuda/crf/device_count.h"

namespace fastseg::cuda {

// Consecutive points of one image, and their rows.
struct LatticeTile {
  int image;
  int first;   // point, of all images
  int points;  // how many
  int row;     // first row
  int rows;    // how many
};

template <class T>
struct LatticeView {
  int corners;  // d + 1
  int images, points;
  int tiles_per_image, tile_points;
  int rows, vertices;
  const int* slots;          // (images, points, corners): the row within the tile
  const T* barycentric;      // (images, points, corners)
  const int* tile_starts;    // (tiles + 1): a tile's rows
  const int* tile_vertices;  // (rows): the vertex of each row
  const int* vertex_rows;    // (rows): rows sorted by vertex, then ascending
  const int* vertex_starts;  // (vertices + 1): a vertex's part of vertex_rows
  const int* neighbors;      // (corners, 2, vertices): one step back, one forward, or `vertices`
  const BoundedCounts* bounded = nullptr;  // where not null, rows and vertices are limits of these

  DeviceCount row_count() const { return {rows, bounded ? &bounded->rows : nullptr}; }
  DeviceCount vertex_count() const { return {vertices, bounded ? &bounded->vertices : nullptr}; }

  FASTSEG_HOST_DEVICE int tiles() const { return images * tiles_per_image; }
  FASTSEG_HOST_DEVICE int entries() const { return images * points * corners; }

  FASTSEG_HOST_DEVICE LatticeTile tile(int t) const {
    const int image = t / tiles_per_image, begin = (t - image * tiles_per_image) * tile_points;
    const int left = points - begin, row = tile_starts[t];
    return {image, image * points + begin, left < tile_points ? left : tile_points, row,
            tile_starts[t + 1] - row};
  }
};

}  // namespace fastseg::cuda
