#pragma once
// The steps of a filter that know vertices alone: the sums of tiles' rows, and the blur.
//
// A vertex's channels are a row of `packs` packs of V elements, the last one padded. There are
// vertices + 1 rows, the last one zero: it stands for neighbours that do not exist. Several images
// may use one lattice: each has its copy of the rows, one after another.

#include <cuda_runtime_api.h>

#include "common/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_view.h"
#include "cuda/crf/spatial_gaussian_filter.h"

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

// What a filter does between splat and slice, for one lattice. Several are worked on side by side:
// their launches are the same.
template <class T>
struct VertexJob {
  const LatticeView<T>* lattice;
  RowShape shape;
  BlurOptions blur;
  const T* rows;  // (copies, lattice.rows) rows: the tiles' sums
  T* buffers;     // 1 + device_blur_buffers times (copies, vertices + 1) rows
  T* result;      // is set to where the blurred rows lie, in `buffers`
};

inline constexpr int kMaxVertexJobs = 8;

// Buffers beside the sums: both orders of a symmetric blur are under way at once.
inline int device_blur_buffers(const BlurOptions& options) { return options.symmetric ? 3 : 1; }

// Sums each vertex's rows, in the order of vertex_rows, and blurs the sums. count: at most
// kMaxVertexJobs. Bad vertex_rows, vertex_starts or neighbors fail the stream.
template <class T, int V>
cudaError_t reduce_and_blur(VertexJob<T>* jobs, int count, cudaStream_t stream);

// A convolution of pixels, as of spatial_gaussian_filter. grid.lanes: a multiple of four.
struct PixelFilter {
  PixelGrid grid;
  AxisTaps<float> taps;
  const float* in;
  float* out;
  float* scratch;
};

// The same, and in its launches the filters, which may share their scratch. Either count may be
// zero, neither is above kMaxVertexJobs.
cudaError_t reduce_and_blur_beside(VertexJob<float>* jobs, int count, const PixelFilter* filters,
                                   int filter_count, cudaStream_t stream);

}  // namespace fastseg::cuda
