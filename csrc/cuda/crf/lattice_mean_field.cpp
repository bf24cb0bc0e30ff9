// fastseg::lattice_mean_field on CUDA: the order of its steps.
//
// After the lattices are built, nothing waits for the device and nothing is allocated. In the
// capture of a CUDA graph nothing waits at all: what the host would have refused makes Q NaN.

#include "cuda/crf/lattice_mean_field.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <vector>

#include "common/crf/lattice_mean_field_ops.h"
#include "cuda/binding.h"
#include "cuda/crf/lattice_mean_field_terms.h"
#include "cuda/crf/permutohedral_filter.h"

namespace fastseg::cuda {
namespace {

void check_sizes(const LatticeMeanFieldCall& call) {
  const int64_t packs = label_packs(call.labels);
  check_count(kField, "the pixels of all images", call.batch * call.points);
  check_count(kField, "the labels of an image's pixels", call.points * packs * 4);
  constexpr int64_t kMaxImages = 65535;  // a launch's second dimension
  FASTSEG_CHECK(call.batch <= kMaxImages, kField, ": on CUDA, the batch must be at most ",
                kMaxImages, ", got ", call.batch);
  FASTSEG_CHECK(call.terms.size() <= kMaxTerms, kField, ": on CUDA, kernels must be at most ",
                kMaxTerms, ", got ", call.terms.size());
}

void run_field(const LatticeMeanFieldCall& call, cudaStream_t stream) {
  const Field field{call, stream, static_cast<int>(label_packs(call.labels))};
  std::vector<std::unique_ptr<LatticeTerm>> lattices;
  std::vector<std::unique_ptr<SeparableTerm>> separables;
  for (const Term& term : call.terms) {
    if (call.is_separable(term)) {
      separables.push_back(std::make_unique<SeparableTerm>(field, term));
    } else {
      lattices.push_back(std::make_unique<LatticeTerm>(field, term));
    }
  }

  const int images = static_cast<int>(call.batch), points = static_cast<int>(call.points);
  const int labels = static_cast<int>(call.labels);
  const Tensor unary = field.memory(field.row_floats());
  const UnaryRows rows{static_cast<const float*>(call.unary.const_data_ptr()),
                       call.unary.stride(0),
                       call.unary.stride(1),
                       lattice_mean_field_ops::point_stride(call.unary),
                       images,
                       points,
                       labels,
                       field.strips(),
                       floats(unary)};
  check_cuda(read_unary(rows, stream));

  MeanFieldPass pass{.strips = field.strips()};
  pass.images = images, pass.points = points, pass.labels = labels;
  const int64_t most = mean_field_tile_points(labels);
  const int64_t tiles = (points + most - 1) / most;
  pass.tile_points = static_cast<int>(permutohedral::tile_points(points, tiles));
  pass.tiles_per_image = static_cast<int>(tiles);
  pass.unary = floats(unary);
  pass.out = floats(call.out);
  pass.labels_last = call.labels_last;
  const Tensor q = field.memory(keeps_q(labels) ? 0 : field.row_floats());
  pass.q = floats(q);
  for (const auto& term : lattices) pass.lattice[pass.lattices++] = term->messages();
  for (const auto& term : separables) pass.separable[pass.separables++] = term->messages();
  const Tensor scratch =
      field.memory(!separables.empty() && call.spatial.size() > 1 ? field.row_floats() : 0);

  pass.wants_messages = true;
  for (int64_t i = 0; i < call.iterations && !call.terms.empty(); ++i) {
    check_cuda(mean_field_pass(pass, stream));
    std::vector<VertexJob<float>> jobs;
    for (const auto& term : lattices) jobs.push_back(term->vertex_job());
    std::vector<PixelFilter> filters;
    for (const auto& term : separables) filters.push_back(term->filter(floats(scratch)));
    check_cuda(reduce_and_blur_beside(jobs.data(), static_cast<int>(jobs.size()), filters.data(),
                                      static_cast<int>(filters.size()), stream));
    for (size_t m = 0; m < lattices.size(); ++m) {
      pass.lattice[m].vertices = lattices[m]->messages_of(jobs[m]);
    }
    for (size_t m = 0; m < separables.size(); ++m) {
      pass.separable[m].out = separables[m]->mixed();
    }
    pass.has_messages = true;
  }
  pass.wants_messages = false;
  pass.log = call.log;
  check_cuda(mean_field_pass(pass, stream));
}

void mean_field(const LatticeMeanFieldCall& call) {
  check_sizes(call);
  launch_beside(call.out, kField, [&](cudaStream_t stream) {
    run_field(call, stream);
    return cudaSuccess;
  });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::lattice_mean_field_ops;
  m.impl("lattice_mean_field", TORCH_BOX(&ops::lattice_mean_field<fastseg::cuda::mean_field>));
}
