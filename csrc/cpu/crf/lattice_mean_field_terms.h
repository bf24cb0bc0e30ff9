#pragma once
// The terms of a MeanField: each one's lattice or separable filter, its normalisation and its
// compatibility; and the one local numbering of a tile's vertices over all lattices.

#include <cstdint>
#include <vector>

#include "cpu/crf/lattice_mean_field_blur.h"
#include "cpu/crf/lattice_mean_field_kernel.h"
#include "cpu/crf/permutohedral_blur.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/crf/spatial_gaussian_filter.h"
#include "cpu/memory/buffer.h"

namespace fastseg::cpu {

// The factors of the logits: scale (pitch) or, where a matrix mixes labels, matrix (labels, pitch),
// column after column. Logits are in units of log 2; natural_scale is scale without that.
struct Mixing {
  Mixing(const Compatibility& compatibility, int64_t labels, int64_t pitch);

  Buffer<float> scale, natural_scale;
  Buffer<float> matrix;
};

// The factors of each point before and after a filter, from the filter's response to ones; empty:
// ones.
struct PointFactors {
  PointFactors() = default;
  // gain: of the filter, which `response` lacks.
  PointFactors(Normalization normalization, LargeVector<float> response, double gain,
               const TaskRunner& tasks);

  bool same_on_both_sides = false;  // `before` then serves for `after` too
  LargeVector<float> before, after;

  const float* before_or_null() const { return before.empty() ? nullptr : before.data(); }
  const float* after_or_null() const {
    return same_on_both_sides ? before_or_null() : after.empty() ? nullptr : after.data();
  }
};

struct LatticeTerm {
  LatticeTerm(const LatticeInput<float>& input, const BlurOptions& options, double gain,
              Normalization normalization, Mixing term_mixing, const TaskRunner& tasks,
              const char* name);

  // Makes room for the blurred values.
  void prepare(int64_t pitch, const TaskRunner& tasks);

  // Blurs along an axis.
  int blur_steps() const { return blur_options.passes * (lattice.view().d + 1); }

  Mixing mixing;
  bool normalised;
  BlurOptions blur_options;
  Lattice<float> lattice;
  PointFactors factors;  // (batch, points)

  struct Copy {
    LargeVector<int32_t> vertex_rows;  // in the tiles' common numbering
    Buffer<float> blurred;             // (vertices, pitch)
  };
  std::vector<Copy> copies;  // one for each image where all images share the lattice, else one
  BlurChains chains;
  Buffer<float> reverse;  // of a symmetric blur, in the reverse order of axes: as `blurred`
};

// Sums of all tiles' rows to blurred values, in each copy of each lattice.
void filter_lattices(std::vector<LatticeTerm>& terms, const float* sums, int64_t copy_rows,
                     int64_t labels, int64_t pitch, const TaskRunner& tasks);

// A Gaussian of positions. Its rows are computed a strip at a time where they are used, from what
// all points put in before: they never go to memory.
struct SeparableTerm {
  SeparableTerm(const std::vector<int64_t>& size, const double* sigma, int64_t images,
                int64_t pitch, Normalization normalization, Mixing term_mixing,
                const TaskRunner& tasks);

  // Makes what was put in the source of the next rows.
  void filter(int64_t images, const TaskRunner& tasks);

  // Rows [begin, end) of an image, counted over all slices, of one slice.
  void rows(int64_t image, int64_t begin, int64_t end, float* out) const;

  Mixing mixing;
  SpatialGaussian<float> gaussian;
  PointFactors factors;      // (points)
  Buffer<float> in, source;  // (images, points, pitch); volumes' source is filtered along the depth
};

// All lattices in one: a point meets `corners` vertices, and a tile numbers those of all lattices
// one lattice after another. Takes from the terms what it replaces: slots, weights, vertex rows.
struct CommonTiles {
  CommonTiles() = default;
  CommonTiles(std::vector<LatticeTerm>& terms, int64_t all_images, int64_t points, int64_t pitch,
              const TaskRunner& tasks);

  int64_t tile_of(int64_t image, int64_t k) const {
    return (images == 1 ? 0 : image * per_image) + k;
  }

  int64_t images = 1;  // that differ: 1 where all lattices are shared
  int64_t tile_points = 4096;
  int64_t per_image = 1;  // tiles
  int corners = 0;
  int64_t largest = 0;          // rows of a tile
  std::vector<int64_t> starts;  // (tiles + 1): first rows of tiles
  Buffer<int32_t> slots;        // (images, points, corners), times the pitch
  Buffer<float> slice, splat;   // (images, points, corners); no splat: it equals slice

 private:
  // Adds a lattice's rows to those of the tiles.
  void count_rows(const LatticeView<float>& view);
  // The tiles' rows one after another.
  void sum_rows(int64_t pitch);
  // Takes a lattice's points in, its corners being first_corner and those after it. next_rows: the
  // row of each tile's next lattice.
  void take_lattice(LatticeTerm& term, int first_corner, std::vector<int64_t>& next_rows,
                    int64_t points, int64_t pitch, const TaskRunner& tasks);
};

}  // namespace fastseg::cpu
