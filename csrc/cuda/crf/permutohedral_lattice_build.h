#pragma once
// Builds permutohedral lattices on the device.

#include <optional>

#include "common/crf/permutohedral_lattice_ops.h"

namespace fastseg::cuda {

// Allocates and fills `out` but for vertex_count, which it fills. Everything runs on torch's
// current stream of the features' device; the host waits for counts, once or, with dilation, twice.
//
// most_tile_points: a multiple of 64 and, times d + 1, at most kMaxTileEntries
// (permutohedral_lattice.h). Tiles are as equal as permutohedral::tile_points makes them.
//
// A CUDA graph cannot capture a wait. While one is captured, `out` gets memory for as many rows and
// touched vertices as there are entries (point, corner), and as many added ones; vertex_count is
// not filled, and `counts`, otherwise empty, holds the device's BoundedCounts. Null: a capture is
// refused.
void build_lattice(const LatticeCall& call, int64_t most_tile_points, LatticeTensors& out,
                   const char* op = "fastseg::permutohedral_lattice",
                   std::optional<Tensor>* counts = nullptr);

}  // namespace fastseg::cuda
