// fastseg::lattice_mean_field on the CPU.

#include "cpu/crf/lattice_mean_field.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/lattice_mean_field_ops.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

LabelStrides label_strides(const Tensor& x) {
  return {x.stride(0), x.stride(1), lattice_mean_field_ops::point_stride(x)};
}

Compatibility compatibility(const Tensor& mu) {
  using Kind = Compatibility::Kind;
  const Kind kind = mu.dim() == 0 ? Kind::potts : mu.dim() == 1 ? Kind::diagonal : Kind::full;
  return {kind, static_cast<const float*>(mu.const_data_ptr())};
}

void run(const LatticeMeanFieldCall& call) {
  const TorchTasks tasks;
  MeanField field(tasks, call.batch, call.labels, call.spatial, "lattice_mean_field");
  const LatticeOptions options{call.refine,    call.dilation, call.passes,
                               call.symmetric, call.side,     call.high_quality};
  for (const auto& term : call.terms) {
    const auto* kernel = static_cast<const float*>(term.kernel.const_data_ptr());
    const auto normalization = static_cast<Normalization>(term.normalization);
    const Compatibility mu = compatibility(term.compatibility);
    if (!term.positions()) {
      field.add_features(kernel, term.kernel.size(0), term.kernel.size(1), normalization, mu,
                         options);
    } else if (call.high_quality) {
      field.add_separable(kernel, normalization, mu);
    } else {
      field.add_positions(kernel, normalization, mu, options);
    }
  }
  field.set_unary(static_cast<const float*>(call.unary.const_data_ptr()),
                  label_strides(call.unary));
  field.start();
  for (int64_t i = 0; i < call.iterations; ++i) field.step();
  auto* out = static_cast<float*>(call.out.mutable_data_ptr());
  const LabelStrides strides = label_strides(call.out);
  call.log ? field.read_log_q(out, strides) : field.read_q(out, strides);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  using fastseg::cpu::run;
  m.impl("lattice_mean_field",
         TORCH_BOX(&fastseg::lattice_mean_field_ops::lattice_mean_field<run>));
}
