#pragma once
// The entries (point, corner) of a lattice, and their order by rows: who sums a row then reads its
// entries one after another, and the order of the sum depends on the lattice alone.

#include <cuda_runtime_api.h>

#include "cuda/crf/permutohedral_view.h"

namespace fastseg::cuda {

// An entry on the way to the vertices.
template <class T>
struct alignas(2 * sizeof(T)) SplatEntry {
  T weight;
  int point;  // of all images
};

// An entry on the way from them. By its pack a row is found with one multiply-add.
template <class T>
struct alignas(2 * sizeof(T)) SliceEntry {
  T weight;
  int pack;  // the first of the vertex's row
};

template <class T>
struct SplatOrder {
  SplatEntry<T>* entries;  // (entries) by row, points ascending in each
  int* starts;             // (rows + 1): a row's part of the entries
  int* scratch;            // (rows)
};

// Checks tile_starts and slots: a bad one fails the stream.
template <class T>
cudaError_t order_entries(const LatticeView<T>& lattice, const SplatOrder<T>& out,
                          cudaStream_t stream);

}  // namespace fastseg::cuda
