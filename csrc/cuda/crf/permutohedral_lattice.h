#pragma once
// The steps in which a permutohedral lattice is built on the device, without torch; in their order.
//
// Its format is that of fastseg/_core/permutohedral.py. All memory is the caller's.
// Counts of entries, candidates and vertices are below 2^30.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/crf/device_count.h"
#include "cuda/dtype.h"

namespace fastseg::cuda {

inline constexpr int kLatticeThreads = 256;

// A tile's rows are found in shared memory: tile_points * (d + 1) is at most this.
inline constexpr int64_t kMaxTileEntries = 3072;

struct LatticeShape {
  int d;
  int64_t batch, points;
  int64_t tile_points, tiles;  // of an image
  int64_t origins;             // 1: the vertices of feature zero exist, though in no tile

  int64_t padded() const { return points + origins; }
  int64_t entries() const { return batch * padded() * (d + 1); }
  int64_t table_size() const { return 2 * entries(); }
  // A group: the points of a tile or, after an image's last tile, its origin.
  int64_t groups() const { return batch * (tiles + origins); }
};

// 1. The simplex of every point: its weights, and `simplices` (permutohedral_keys.h). first_bad,
// which begins as kNoBadPoint, becomes the index of the first point in the batch whose features
// make none; its simplex is then the origin's.
inline constexpr unsigned kNoBadPoint = ~0u;
struct LatticePoints {
  Dtype dtype;
  const void* features;  // (batch, d, points)
  double refine;
  void* barycentric;  // (batch, points, d + 1)
  int* simplices;     // (batch, padded, d + 1)
  unsigned* first_bad;
};
cudaError_t find_simplices(const LatticeShape& shape, const LatticePoints& points,
                           cudaStream_t stream);

// 2. The rows of every tile and the vertices that points touch.
struct LatticeRows {
  const int* simplices;
  int* table;           // (table_size), all kEmptySlot
  int* row_entries;     // (entries): of a group's rows, from its first entry on
  int* row_slots;       // (entries): the rows' slots of the table; ~slot: the vertex's first row
  int* slots;           // (batch, points, d + 1)
  int* tile_starts;     // (batch * tiles + 1)
  int* group_vertices;  // (groups + 1)
};
// Writes slots and, to tile_starts, the number of each tile's rows, of which the caller makes
// prefix sums.
cudaError_t find_rows(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream);
// Writes to group_vertices the number of each group's new vertices, of which the caller makes
// prefix sums.
cudaError_t count_touched(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream);
// Then writes the first vertex of each image (batch + 1), and the number of rows.
cudaError_t summarize(const LatticeShape& shape, const LatticeRows& rows, int* image_starts,
                      int* row_count, cudaStream_t stream);
// Makes the table one of vertices. touched: the first entry of each.
cudaError_t number_touched(const LatticeShape& shape, const LatticeRows& rows, int* touched,
                           cudaStream_t stream);

// 3. Dilation: the candidates are every touched vertex' neighbours.
struct LatticeDilation {
  const int* simplices;
  const int* touched;
  int* touched_table;  // as of number_touched
  DeviceCount touched_count;
  const int* image_starts;  // as of summarize
  bool joining;             // only candidates along two axes or more
  int* table;               // (2 candidates), all kEmptySlot
  unsigned* axes;           // (2 candidates), zeros: a bit for each axis
  int* candidate_slots;     // (candidates)
  int* numbers;             // (candidates + 1); zeros, unless touched_count is exact
  int most_vertices;        // touched and added: those beyond are left out

  int64_t candidates(int d) const { return int64_t{touched_count.most} * (d + 1) * 2; }
};
// Writes 1 to numbers for each vertex to add, else 0; the caller makes prefix sums of them.
cudaError_t find_added(const LatticeShape& shape, const LatticeDilation& dilation,
                       cudaStream_t stream);
// Then numbers the vertices: those of an image are its touched ones, then its added ones. sources:
// one for each vertex. added_starts (batch): the number of vertices added to the images before.
cudaError_t number_added(const LatticeShape& shape, const LatticeDilation& dilation, int* sources,
                         int* added_starts, cudaStream_t stream);

// Where the host does not wait: the counts as the steps so far have left them. added: what
// `numbers` ends with, or null.
struct LatticeCounts {
  const unsigned* first_bad;
  const int* rows;
  const int* touched;
  const int* added;
  int most_vertices;
  BoundedCounts* out;
};
cudaError_t bound_counts(const LatticeCounts& counts, cudaStream_t stream);

// 4. Neighbours.
struct LatticeIndex {
  const int* simplices;
  const int* touched;
  const int* sources;  // of each vertex; without dilation `touched`
  DeviceCount vertices;
  int* table;  // of vertices
  int64_t table_size;
};
// Fills a table of kEmptySlot.
cudaError_t index_vertices(const LatticeShape& shape, const LatticeIndex& index,
                           cudaStream_t stream);
// neighbors: (d + 1, 2, vertices).
cudaError_t find_neighbors(const LatticeShape& shape, const LatticeIndex& index, int* neighbors,
                           cudaStream_t stream);

// 5. Rows by vertex.
struct LatticeVertexRows {
  const int* table;         // as of number_touched
  const int* row_slots;     // as of find_rows
  const int* tile_starts;   // as prefix sums
  const int* added_starts;  // null without dilation
  DeviceCount rows, vertices;
  int* tile_vertices;  // (rows)
  int* places;         // (rows)
  int* vertex_rows;    // (rows)
  int* vertex_starts;  // (vertices + 1), zeros
};
// Writes tile_vertices and, to vertex_starts, the number of each vertex' rows, of which the caller
// makes prefix sums.
cudaError_t count_vertex_rows(const LatticeShape& shape, const LatticeVertexRows& rows,
                              cudaStream_t stream);
// Then writes vertex_rows.
cudaError_t sort_vertex_rows(const LatticeVertexRows& rows, cudaStream_t stream);

}  // namespace fastseg::cuda
