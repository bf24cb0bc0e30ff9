#pragma once
// fastseg::permutohedral_lattice but for its kernels, which the CPU and the CUDA bindings bring.

#include <cstdint>
#include <tuple>
#include <vector>

#include "common/crf/permutohedral.h"
#include "common/tensor_checks.h"

namespace fastseg {

// The tensors of a lattice, in the order of the op's results.
struct LatticeTensors {
  Tensor slots, barycentric, tile_starts, tile_vertices, vertex_rows, vertex_starts, neighbors;
  Tensor vertex_count;  // on the CPU, allocated
};

struct LatticeCall {
  Tensor features;  // (B, d, N), contiguous
  double refine;
  int dilation;

  int64_t batch() const { return features.size(0); }
  int d() const { return static_cast<int>(features.size(1)); }
  int64_t points() const { return features.size(2); }

  Tensor integers(const std::vector<int64_t>& size) const {
    return empty_like_layout(features, size, ScalarType::Int, false);
  }
};

// Allocates and fills everything but vertex_count, which it fills.
using LatticeKernel = void (*)(const LatticeCall&, LatticeTensors&);

namespace permutohedral_lattice_ops {

inline Tensor on_cpu(const std::vector<int64_t>& size, ScalarType dtype) {
  AtenTensorHandle handle;
  const std::vector<int64_t> strides = dense_strides(size, false);
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(size.size()), size.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <LatticeKernel build>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> permutohedral_lattice(
    const Tensor& features, double refine, int64_t dilation) {
  constexpr const char* op = "fastseg::permutohedral_lattice";
  FASTSEG_CHECK(features.dim() == 3 && features.size(1) >= 1 &&
                    features.size(1) <= permutohedral::kMaxDimensions,
                op, ": features must have shape (B, d, N) with d from 1 to ",
                permutohedral::kMaxDimensions, ", got ", to_string(features.sizes()));
  const ScalarType dtype = features.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                ": features must be float32 or float64, got ", dtype);
  FASTSEG_CHECK(refine > 0 && refine <= 1e6, op, ": refine must be positive, got ", refine);
  FASTSEG_CHECK(dilation >= 0 && dilation <= 2, op, ": dilation must be 0, 1 or 2, got ", dilation);
  const LatticeCall call{dense(features, false), refine, static_cast<int>(dilation)};
  LatticeTensors out;
  out.vertex_count = on_cpu({call.batch()}, ScalarType::Long);
  build(call, out);
  return {out.slots,       out.barycentric,   out.tile_starts, out.tile_vertices,
          out.vertex_rows, out.vertex_starts, out.neighbors,   out.vertex_count};
}

}  // namespace permutohedral_lattice_ops
}  // namespace fastseg
