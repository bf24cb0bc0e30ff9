// fastseg::lattice_mean_field on the CPU: the op's terms are added to a MeanField, which iterates.

#include "cpu/crf/lattice_mean_field.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/lattice_mean_field_ops.h"
#include "cpu/threads/torch_crew.h"

namespace fastseg::cpu {
namespace {

LabelStrides label_strides(const Tensor& x) {
  return {x.stride(0), x.stride(1), lattice_mean_field_ops::point_stride(x)};
}

void add_term(const LatticeMeanFieldCall& call, const LatticeMeanFieldCall::Term& term,
              MeanField& field) {
  const LatticeOptions options{call.refine,    call.dilation, call.passes,
                               call.symmetric, call.side,     call.high_quality};
  if (call.is_separable(term)) {
    field.add_separable(term.sigma_data(), term.normalization, term.compatibility);
  } else if (term.gaussian == LatticeMeanFieldCall::Term::Gaussian::of_positions) {
    field.add_positions(term.sigma_data(), term.normalization, term.compatibility, options);
  } else {
    const Tensor& features = term.features;
    field.add_features(static_cast<const float*>(features.const_data_ptr()), features.size(0),
                       features.size(1), term.normalization, term.compatibility, options);
  }
}

void run_on(const TaskRunner& tasks, const LatticeMeanFieldCall& call) {
  MeanField field(tasks, call.batch, call.labels, call.spatial, "lattice_mean_field");
  for (const auto& term : call.terms) add_term(call, term, field);
  field.set_unary(static_cast<const float*>(call.unary.const_data_ptr()),
                  label_strides(call.unary));
  field.start();
  for (int64_t i = 0; i < call.iterations; ++i) field.step();
  auto* out = static_cast<float*>(call.out.mutable_data_ptr());
  const LabelStrides strides = label_strides(call.out);
  call.log ? field.read_log_q(out, strides) : field.read_q(out, strides);
}

void run(const LatticeMeanFieldCall& call) {
  with_torch_crew(call.unary.numel(), [&](const TaskRunner& tasks) { run_on(tasks, call); });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  using fastseg::cpu::run;
  m.impl("lattice_mean_field",
         TORCH_BOX(&fastseg::lattice_mean_field_ops::lattice_mean_field<run>));
}
