#pragma once
// The steps of a filter that know vertices alone: the sums of tiles' rows, and the blur.
//
// A vertex's channels are a row of `packs` packs of V elements, the last one padded. There are
// vertices + 1 rows, the last one zero: it stands for neighbours that do not exist. Several images
// may use one lattice: each has its copy of the rows, one after another.

#include <cuda_runtime_api.h>

#include "common/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_view.h"

namespace fastseg::cuda {

struct RowShape {
  int packs;
  int copies;

  template <int V>
  int64_t elements(int rows) const {
    return int64_t{rows} * packs * V;
  }
};

// Elements of a pack: rows of one channel are not padded.
inline int pack_size(int64_t channels) { return channels == 1 ? 1 : 4; }

// out[v] = the sum of its tiles' rows, in the order of vertex_rows. rows: (copies, lattice.rows)
// rows; out: (copies, vertices + 1) rows. A bad vertex_rows or vertex_starts fails the stream.
template <class T, int V>
cudaError_t reduce(const LatticeView<T>& lattice, const RowShape& shape, const T* rows, T* out,
                   cudaStream_t stream);

// Blurs `values` and sets *result to where they then lie: in `values` or in `scratch`, of
// blur_buffers times as many elements. Bad neighbors fail the stream.
template <class T, int V>
cudaError_t blur(const LatticeView<T>& lattice, const RowShape& shape, const BlurOptions& options,
                 T* values, T* scratch, T** result, cudaStream_t stream);

}  // namespace fastseg::cuda
