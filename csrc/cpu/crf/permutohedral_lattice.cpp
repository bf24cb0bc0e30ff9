// fastseg::permutohedral_lattice on the CPU: the memory of the lattice that
// permutohedral_lattice_core.cpp builds is that of tensors.

#include "cpu/crf/permutohedral_lattice.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/permutohedral_lattice_ops.h"
#include "cpu/threads/torch_crew.h"

namespace fastseg::cpu {
namespace {

template <class T>
void build_as(const LatticeCall& call, LatticeTensors& out) {
  const int64_t b = call.batch(), d = call.d(), n = call.points();
  const LatticeInput<T> input{static_cast<const T*>(call.features.const_data_ptr()),
                              b,
                              n,
                              call.d(),
                              d * n,
                              n,
                              call.refine,
                              call.dilation};
  const auto allocate = [&](LatticeArray array, int64_t elements) {
    const auto integers = [&](Tensor& tensor, const std::vector<int64_t>& size) {
      tensor = call.integers(size);
      return tensor.mutable_data_ptr();
    };
    switch (array) {
      case LatticeArray::slots:
        return integers(out.slots, {b, n, d + 1});
      case LatticeArray::barycentric:
        out.barycentric =
            empty_like_layout(call.features, {b, n, d + 1}, call.features.scalar_type(), false);
        return out.barycentric.mutable_data_ptr();
      case LatticeArray::tile_starts:
        return integers(out.tile_starts, {elements});
      case LatticeArray::tile_vertices:
        return integers(out.tile_vertices, {elements});
      case LatticeArray::vertex_rows:
        return integers(out.vertex_rows, {elements});
      case LatticeArray::vertex_starts:
        return integers(out.vertex_starts, {elements});
      default:
        return integers(out.neighbors, {d + 1, 2, elements / (2 * (d + 1))});
    }
  };
  auto* counts = static_cast<int64_t*>(out.vertex_count.mutable_data_ptr());
  with_torch_crew(b * n * (d + 1),
                  [&](const TaskRunner& tasks) { build_lattice(input, tasks, allocate, counts); });
}

void build(const LatticeCall& call, LatticeTensors& out) {
  call.features.scalar_type() == ScalarType::Float ? build_as<float>(call, out)
                                                   : build_as<double>(call, out);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::permutohedral_lattice_ops;
  m.impl("permutohedral_lattice", TORCH_BOX(&ops::permutohedral_lattice<fastseg::cpu::build>));
}
