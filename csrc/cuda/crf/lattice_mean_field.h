#pragma once
// Mean field of a dense CRF on the device: Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q))).
//
// Labels lie in rows of `packs` packs of four floats, padded with labels that never win. The state
// between two iterations is the messages: rows at the vertices of each lattice, and at the pixels
// for the filters that are exact convolutions. Points are an image's pixels in the order of
// PixelStrips.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/crf/mean_field_terms.h"
#include "cuda/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_order.h"
#include "cuda/crf/permutohedral_view.h"
#include "cuda/crf/pixel_strips.h"
#include "cuda/crf/spatial_gaussian_filter.h"

namespace fastseg::cuda {

inline constexpr int kMaxTerms = kMaxVertexJobs;  // of each sort: a launch takes 4 KB

inline int64_t label_packs(int64_t labels) { return (labels + 3) / 4; }

// Points of a tile, so that Q of a tile stays in shared memory beside those of other blocks; of the
// largest numbers of labels it does not (keeps_q).
int64_t mean_field_tile_points(int64_t labels);
bool keeps_q(int64_t labels);

struct LatticeMessages {
  int corners;
  bool shared;                     // one lattice for all images, each with a copy of the rows
  const SliceEntry<float>* slice;  // (images or 1, points, corners), with n_m in the weights
  const float* scale;              // (4 packs): logits += scale * the sum over the corners
  const float* vertices;           // (copies, vertices + 1) rows
  int64_t vertices_copy;  // floats from image to image; 0 where images have their own lattices
  const SplatEntry<float>* splat;
  const int* starts;       // of the rows' entries
  const int* tile_starts;  // of the tiles' rows
  float* sums;             // (copies, rows) rows
  int64_t sums_copy;
  const BoundedCounts* bounded;  // null where the host knows that the lattice is good
};

// (images, pixels) rows; factors of the pixels, (pixels), null: ones.
struct SeparableMessages {
  const float* scale;  // (4 packs): logits += scale * after * out
  const float* after;
  const float* out;
  const float* before;
  float* in;  // before * Q; may be `out`
};

struct MeanFieldPass {
  int images, points, labels;
  int tile_points, tiles_per_image;
  PixelStrips strips;
  const float* unary;   // (images, points) rows: -U, each row's largest element zero
  bool has_messages;    // not in the first pass
  bool wants_messages;  // in all but the last pass, which writes Q
  int lattices, separables;
  LatticeMessages lattice[kMaxTerms];
  SeparableMessages separable[kMaxTerms];
  float* out;  // dense (images, labels, pixels) or, labels_last, (images, pixels, labels)
  bool labels_last;
  bool log;  // of the last pass: out is log Q, -infinity where a label is ruled out
  float* q;  // (images, points) rows, unless keeps_q(labels)
};
cudaError_t mean_field_pass(const MeanFieldPass& pass, cudaStream_t stream);

// Below: what is done once.

struct UnaryRows {
  const float* energies;
  int64_t image_stride, label_stride, pixel_stride;
  int images, points, labels;
  PixelStrips strips;
  float* rows;  // as MeanFieldPass::unary
};
cudaError_t read_unary(const UnaryRows& op, cudaStream_t stream);

// Features of pixels, (planes, pixels) a plane after another, as those of points.
struct PointFeatures {
  int64_t planes;
  int points;
  PixelStrips strips;
  const float* of_pixels;
  float* features;
};
cudaError_t point_features(const PointFeatures& op, cudaStream_t stream);

// Positions over bandwidths, in the order of position_plane. features: (axes, points). A bandwidth
// that is not positive fails the stream.
struct PositionFeatures {
  int axes;
  int sizes[kMaxAxes];
  PixelStrips strips;
  const float* sigma;
  float* features;
};
cudaError_t position_features(const PositionFeatures& op, cudaStream_t stream);

// slice <- the weights times the points' factors behind the filter, and the vertices; splat's
// weights times those before it. response: K 1 of each point without the gain.
struct FoldedWeights {
  LatticeView<float> lattice;
  int packs;
  Normalization normalization;
  float gain;
  const float* response;
  SliceEntry<float>* slice;
  SplatEntry<float>* splat;
};
cudaError_t fold_weights(const FoldedWeights& op, cudaStream_t stream);

// (points) each; either may be null, and then is not wanted.
cudaError_t point_factors(Normalization normalization, int points, const float* response,
                          float* before, float* after, cudaStream_t stream);

// scale: (4 packs). matrix: (4 packs, 4 packs), column after column, for the full kind. An element
// that is not finite fails the stream.
struct Mixing {
  Compatibility compatibility;  // values on the device
  int labels;
  float* scale;
  float* matrix;
};
cudaError_t make_mixing(const Mixing& op, cudaStream_t stream);

// Once for each iteration: out = matrix @ in for each of `rows` rows, which do not overlap.
cudaError_t mix_rows(const float* matrix, int64_t rows, int packs, const float* in, float* out,
                     cudaStream_t stream);

}  // namespace fastseg::cuda
