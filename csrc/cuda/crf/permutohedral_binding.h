#pragma once
// A lattice's tensors as the kernels see them.

#include "common/crf/permutohedral.h"
#include "cuda/binding.h"
#include "cuda/crf/permutohedral_view.h"

namespace fastseg::cuda {

inline const int* integers(const Tensor& t) { return static_cast<const int*>(t.const_data_ptr()); }

// lattice: anything that has the tensors by their names. Rows and vertices are of `packs` packs.
template <class T, class Tensors>
LatticeView<T> lattice_view(const char* op, const Tensors& lattice, int64_t packs) {
  const int64_t images = lattice.slots.size(0), points = lattice.slots.size(1);
  const int64_t tiles = images == 0 ? 0 : (lattice.tile_starts.size(0) - 1) / images;
  const int64_t rows = lattice.tile_vertices.size(0);
  const int64_t vertices = lattice.vertex_starts.size(0) - 1;
  check_count(op, "the entries of slots", lattice.slots.numel());
  check_count(op, "the tiles' rows by their channels", rows * packs);
  check_count(op, "the vertices by their channels", (vertices + 1) * packs);
  return {static_cast<int>(lattice.slots.size(2)),
          static_cast<int>(images),
          static_cast<int>(points),
          static_cast<int>(tiles),
          static_cast<int>(permutohedral::tile_points(points, tiles)),
          static_cast<int>(rows),
          static_cast<int>(vertices),
          integers(lattice.slots),
          static_cast<const T*>(lattice.barycentric.const_data_ptr()),
          integers(lattice.tile_starts),
          integers(lattice.tile_vertices),
          integers(lattice.vertex_rows),
          integers(lattice.vertex_starts),
          integers(lattice.neighbors)};
}

}  // namespace fastseg::cuda
