#pragma once
// The terms of a mean field on CUDA: their memory, and how their messages are made from rows of Q.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/crf/lattice_gain.h"
#include "common/crf/lattice_mean_field_ops.h"
#include "cuda/binding.h"
#include "cuda/crf/lattice_mean_field.h"
#include "cuda/crf/permutohedral_binding.h"
#include "cuda/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_filter.h"
#include "cuda/crf/permutohedral_lattice_build.h"
#include "cuda/crf/spatial_gaussian_filter.h"

namespace fastseg::cuda {

using Term = LatticeMeanFieldCall::Term;

inline constexpr const char* kField = LatticeMeanFieldCall::kOp;

inline void check_cuda(cudaError_t error) {
  FASTSEG_CHECK(error == cudaSuccess, kField, ": ", cudaGetErrorString(error));
}

inline float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// What all terms have in common.
struct Field {
  const LatticeMeanFieldCall& call;
  cudaStream_t stream;
  int packs;

  int64_t pitch() const { return int64_t{packs} * 4; }
  PixelStrips strips() const {
    return PixelStrips(static_cast<int>(call.spatial.size()), call.spatial.data());
  }
  int64_t row_floats() const { return call.batch * call.points * pitch(); }
  Tensor memory(int64_t elements, ScalarType dtype = ScalarType::Float) const {
    return torch::stable::new_empty(call.out, {elements}, dtype);
  }
  Tensor ones(int64_t elements) const { return torch::stable::fill_(memory(elements), 1); }
};

// The compatibility as factors of the logits.
class LabelMixing {
 public:
  LabelMixing(const Field& field, const Compatibility& compatibility)
      : is_full_(compatibility.kind == Compatibility::Kind::full),
        scale_(field.memory(field.pitch())) {
    if (is_full_) {
      check_count(kField, "the elements of a compatibility", field.pitch() * field.pitch());
      matrix_ = field.memory(field.pitch() * field.pitch());
    }
    const Mixing op{compatibility, static_cast<int>(field.call.labels), floats(scale_),
                    is_full_ ? floats(matrix_) : nullptr};
    check_cuda(make_mixing(op, field.stream));
  }

  const float* scale() const { return floats(scale_); }

  // Where the rows' labels are after the matrix, if there is one: `rows` or `free`.
  float* mix(const Field& field, int64_t row_count, float* rows, float* free) const {
    if (!is_full_) return rows;
    check_cuda(mix_rows(floats(matrix_), row_count, field.packs, rows, free, field.stream));
    return free;
  }

 private:
  bool is_full_;
  Tensor scale_, matrix_;
};

class LatticeTerm {
 public:
  LatticeTerm(const Field& field, const Term& term)
      : field_(field), mixing_(field, term.compatibility) {
    const LatticeMeanFieldCall& call = field.call;
    const LatticeCall lattice{features_of(term), call.refine, call.dilation};
    lattice_.vertex_count = permutohedral_lattice_ops::on_cpu({lattice.batch()}, ScalarType::Long);
    build_lattice(lattice, mean_field_tile_points(call.labels), lattice_, kField, &counts_);
    view_ = lattice_view<float>(kField, lattice_, field.packs);
    if (counts_) view_.bounded = static_cast<const BoundedCounts*>(counts_->const_data_ptr());
    blur_ = {call.passes, call.symmetric, false, call.side};
    shape_ = {field.packs, view_.images == 1 ? static_cast<int>(call.batch) : 1};
    allocate();
    fold(term);
  }

  LatticeMessages messages() {
    const bool shared = view_.images == 1;
    return {view_.corners,
            shared,
            static_cast<const SliceEntry<float>*>(slice_.const_data_ptr()),
            mixing_.scale(),
            nullptr,
            shared ? vertex_floats() : 0,
            entries(),
            order().starts,
            view_.tile_starts,
            floats(sums_),
            shared ? view_.rows * field_.pitch() : 0,
            view_.bounded};
  }

  // From the sums to the vertices.
  VertexJob<float> vertex_job() const {
    return {&view_, shape_, blur_, floats(sums_), floats(buffers_), nullptr};
  }

  // The messages at the vertices, from where the job has left them.
  const float* messages_of(const VertexJob<float>& job) const {
    float* const first = job.buffers;
    float* const free = job.result == first ? first + shape_.copies * vertex_floats() : first;
    const int64_t rows = int64_t{shape_.copies} * (view_.vertices + 1);
    return mixing_.mix(field_, rows, job.result, free);
  }

 private:
  Tensor features_of(const Term& term) const {
    const LatticeMeanFieldCall& call = field_.call;
    if (term.gaussian == Term::Gaussian::of_features) {
      const int64_t d = term.features.size(1);
      FASTSEG_CHECK(d >= 1 && d <= permutohedral::kMaxDimensions, kField,
                    ": kernels must have 1 to ", permutohedral::kMaxDimensions, " features, got ",
                    d);
      return in_strips(torch::stable::flatten(term.features, 2, -1));
    }
    PositionFeatures op{
        static_cast<int>(call.spatial.size()), {}, field_.strips(), nullptr, nullptr};
    for (int a = 0; a < op.axes; ++a) op.sizes[a] = static_cast<int>(call.spatial[a]);
    const Tensor features = torch::stable::new_empty(call.out, {1, op.axes, call.points});
    op.sigma = term.sigma_data();
    op.features = floats(features);
    check_cuda(position_features(op, field_.stream));
    return features;
  }

  Tensor in_strips(const Tensor& of_pixels) const {
    const Tensor dense = torch::stable::contiguous(of_pixels);
    const Tensor features = torch::stable::new_empty(dense, dense.sizes());
    const PointFeatures op{dense.size(0) * dense.size(1), static_cast<int>(dense.size(2)),
                           field_.strips(), static_cast<const float*>(dense.const_data_ptr()),
                           floats(features)};
    check_cuda(point_features(op, field_.stream));
    return features;
  }

  void allocate() {
    const int64_t copies = shape_.copies;
    entries_ = field_.memory(2 * view_.entries());
    starts_ = field_.memory(2 * int64_t{view_.rows} + 1, ScalarType::Int);
    slice_ = field_.memory(2 * view_.entries());
    sums_ = field_.memory(copies * view_.rows * field_.pitch());
    buffers_ = field_.memory((1 + device_blur_buffers(blur_)) * copies * vertex_floats());
  }

  // The factors of the points, which are functions of K 1, into the weights.
  void fold(const Term& term) {
    const int64_t points = int64_t{view_.images} * view_.points;
    const Tensor ones = field_.ones(points), response = field_.memory(points);
    const FilterJob<float> job{view_,   blur_,         1.f,
                               1,       floats(ones),  floats(response),
                               order(), floats(sums_), floats(buffers_)};
    check_cuda(permutohedral_filter(job, field_.stream));
    const LatticeMeanFieldCall& call = field_.call;
    const double gain = lattice_gain(view_.corners - 1, call.high_quality, call.refine, blur_);
    const FoldedWeights op{view_,
                           field_.packs,
                           term.normalization,
                           static_cast<float>(gain),
                           floats(response),
                           static_cast<SliceEntry<float>*>(slice_.mutable_data_ptr()),
                           entries()};
    check_cuda(fold_weights(op, field_.stream));
  }

  SplatEntry<float>* entries() const {
    return static_cast<SplatEntry<float>*>(entries_.mutable_data_ptr());
  }
  SplatOrder<float> order() const {
    int* const starts = static_cast<int*>(starts_.mutable_data_ptr());
    return {entries(), starts, starts + view_.rows + 1};
  }
  int64_t vertex_floats() const { return int64_t{view_.vertices + 1} * field_.pitch(); }

  const Field& field_;
  LabelMixing mixing_;
  LatticeTensors lattice_;
  std::optional<Tensor> counts_;
  LatticeView<float> view_;
  BlurOptions blur_;
  RowShape shape_;
  Tensor entries_, starts_, slice_, sums_, buffers_;
};

class SeparableTerm {
 public:
  SeparableTerm(const Field& field, const Term& term)
      : field_(field),
        mixing_(field, term.compatibility),
        grid_(grid(field.call.batch, field.pitch())),
        taps_(field.memory(grid_.all_taps())),
        radii_(field.memory(kMaxAxes, ScalarType::Int)),
        in_(field.memory(field.row_floats())),
        out_(field.memory(field.row_floats())) {
    check_cuda(make_taps(grid_, term.sigma_data(), -1, axis_taps(), field.stream));
    const Normalization normalization = term.normalization;
    if (normalization == Normalization::none) return;
    const int64_t points = field.call.points;
    const Tensor ones = field.ones(points), response = field.memory(points);
    const Tensor scratch = field.memory(points);
    check_cuda(spatial_gaussian_filter<float>(grid(1, 1), axis_taps(), floats(ones),
                                              floats(response), floats(scratch), field.stream));
    factors_ = field.memory(points);
    before_ = has_factor_before(normalization);
    after_ = has_factor_after(normalization);
    check_cuda(point_factors(normalization, static_cast<int>(points), floats(response),
                             before_ ? floats(factors_) : nullptr,
                             before_ ? nullptr : floats(factors_), field.stream));
  }

  SeparableMessages messages() const {
    return {mixing_.scale(), after_ ? floats(factors_) : nullptr, nullptr,
            before_ ? floats(factors_) : nullptr, floats(in_)};
  }

  // From `in` to the messages at the points, but for their mixing. scratch: as many rows.
  PixelFilter filter(float* scratch) const {
    return {grid_, axis_taps(), floats(in_), floats(out_), scratch};
  }

  // The messages, from where the filter has left them.
  const float* mixed() const {
    return mixing_.mix(field_, field_.call.batch * field_.call.points, floats(out_), floats(in_));
  }

 private:
  PixelGrid grid(int64_t images, int64_t lanes) const {
    const std::vector<int64_t>& spatial = field_.call.spatial;
    PixelGrid grid{images, static_cast<int>(spatial.size()), {}, lanes};
    for (int a = 0; a < grid.axes; ++a) grid.sizes[a] = spatial[a];
    return grid;
  }
  AxisTaps<float> axis_taps() const {
    return {floats(taps_), static_cast<int*>(radii_.mutable_data_ptr())};
  }

  const Field& field_;
  LabelMixing mixing_;
  PixelGrid grid_;
  Tensor taps_, radii_, in_, out_, factors_;
  bool before_ = false, after_ = false;  // a symmetric normalisation's factors are the same
};

}  // namespace fastseg::cuda
