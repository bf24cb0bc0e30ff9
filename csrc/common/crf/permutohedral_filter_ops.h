#pragma once
// fastseg::permutohedral_filter and its backward but for their kernels, which the CPU and the CUDA
// bindings bring: arguments checked, inputs dense, outputs allocated.

#include <cstdint>
#include <tuple>
#include <vector>

#include "common/crf/permutohedral.h"
#include "common/crf/permutohedral_blur.h"
#include "common/tensor_checks.h"

namespace fastseg {

// Everything but the tensors' contents is checked. (B, C, N) tensors are contiguous.
struct FilterCall {
  Tensor slots, barycentric, tile_starts, tile_vertices, vertex_rows, vertex_starts, neighbors;
  int64_t batch, channels, points, d, tiles, rows, vertices;
  BlurOptions blur;
  double gain;
  Tensor values, out;
  Tensor grad, grad_barycentric;  // of the backward alone; there `out` is the values' gradient

  // body(T{}), T being the values' type.
  template <class Body>
  void with_type(const Body& body) const {
    values.scalar_type() == ScalarType::Float ? body(float{}) : body(double{});
  }
};

using FilterKernel = void (*)(const FilterCall&);

namespace permutohedral_filter_ops {

inline Tensor checked(const char* op, const char* name, const Tensor& x,
                      const std::vector<int64_t>& size, const Tensor& like, ScalarType dtype) {
  FASTSEG_CHECK(x.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", got ",
                x.scalar_type());
  FASTSEG_CHECK(std::vector<int64_t>(x.sizes().begin(), x.sizes().end()) == size, op, ": ", name,
                " must have shape ", to_string(size), ", got ", to_string(x.sizes()));
  check_same_device(like, "values", x, name, op);
  return dense(x, false);
}

inline FilterCall prepare(const char* op, const Tensor& values, const Tensor& slots,
                          const Tensor& barycentric, const Tensor& tile_starts,
                          const Tensor& tile_vertices, const Tensor& vertex_rows,
                          const Tensor& vertex_starts, const Tensor& neighbors, int64_t passes,
                          bool symmetric, bool reverse, double gain, double side) {
  FASTSEG_CHECK(
      slots.dim() == 3 && slots.size(2) >= 2 && slots.size(2) <= permutohedral::kMaxDimensions + 1,
      op, ": slots must have shape (B, N, d + 1) with d from 1 to ", permutohedral::kMaxDimensions,
      ", got ", to_string(slots.sizes()));
  const int64_t b = slots.size(0), n = slots.size(1), d1 = slots.size(2);
  FASTSEG_CHECK(values.dim() == 3 && values.size(0) == b && values.size(2) == n, op,
                ": values must have shape (", b, ", C, ", n, "), got ", to_string(values.sizes()));
  const ScalarType dtype = values.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                ": values must be float32 or float64, got ", dtype);
  FASTSEG_CHECK(barycentric.scalar_type() == dtype, op, ": values must be ",
                barycentric.scalar_type(), " as barycentric is, got ", dtype);
  for (const auto& [t, name] : {std::pair{&tile_starts, "tile_starts"},
                                {&tile_vertices, "tile_vertices"},
                                {&vertex_starts, "vertex_starts"}}) {
    FASTSEG_CHECK(t->dim() == 1, op, ": ", name, " must have one dimension, got shape ",
                  to_string(t->sizes()));
  }
  const int64_t tiles = tile_starts.size(0) - 1, rows = tile_vertices.size(0);
  const int64_t vertices = vertex_starts.size(0) - 1;
  FASTSEG_CHECK(vertices >= 0 && (b > 0 && n > 0 ? tiles > 0 && tiles % b == 0 : tiles == 0), op,
                ": tile_starts must be for equally many tiles of each of ", b, " images, got ",
                tiles, " tiles");
  FASTSEG_CHECK(b * n == 0 || (tiles / b - 1) * permutohedral::tile_points(n, tiles / b) < n, op,
                ": tile_starts must be for tiles that are not empty, got ", tiles / b,
                " for each image of ", n, " points");
  FASTSEG_CHECK(passes >= 1 && passes <= 64, op, ": passes must be from 1 to 64, got ", passes);
  constexpr ScalarType kInt = ScalarType::Int;
  return {checked(op, "slots", slots, {b, n, d1}, values, kInt),
          checked(op, "barycentric", barycentric, {b, n, d1}, values, dtype),
          checked(op, "tile_starts", tile_starts, {tiles + 1}, values, kInt),
          checked(op, "tile_vertices", tile_vertices, {rows}, values, kInt),
          checked(op, "vertex_rows", vertex_rows, {rows}, values, kInt),
          checked(op, "vertex_starts", vertex_starts, {vertices + 1}, values, kInt),
          checked(op, "neighbors", neighbors, {d1, 2, vertices}, values, kInt),
          b,
          values.size(1),
          n,
          d1 - 1,
          tiles,
          rows,
          vertices,
          {static_cast<int>(passes), symmetric, reverse, side},
          gain,
          dense(values, false),
          empty_like_layout(values, {b, values.size(1), n}, dtype, false),
          Tensor(),
          Tensor()};
}

template <FilterKernel filter>
Tensor permutohedral_filter(const Tensor& values, const Tensor& slots, const Tensor& barycentric,
                            const Tensor& tile_starts, const Tensor& tile_vertices,
                            const Tensor& vertex_rows, const Tensor& vertex_starts,
                            const Tensor& neighbors, int64_t passes, bool symmetric, bool reverse,
                            double gain, double side) {
  const FilterCall call = prepare("fastseg::permutohedral_filter", values, slots, barycentric,
                                  tile_starts, tile_vertices, vertex_rows, vertex_starts, neighbors,
                                  passes, symmetric, reverse, gain, side);
  filter(call);
  return call.out;
}

template <FilterKernel backward>
std::tuple<Tensor, Tensor> permutohedral_filter_backward(
    const Tensor& grad, const Tensor& values, const Tensor& slots, const Tensor& barycentric,
    const Tensor& tile_starts, const Tensor& tile_vertices, const Tensor& vertex_rows,
    const Tensor& vertex_starts, const Tensor& neighbors, int64_t passes, bool symmetric,
    bool reverse, double gain, double side) {
  constexpr const char* op = "fastseg::permutohedral_filter_backward";
  FilterCall call = prepare(op, values, slots, barycentric, tile_starts, tile_vertices, vertex_rows,
                            vertex_starts, neighbors, passes, symmetric, reverse, gain, side);
  const ScalarType dtype = values.scalar_type();
  call.grad = checked(op, "grad", grad, {call.batch, call.channels, call.points}, values, dtype);
  call.grad_barycentric =
      empty_like_layout(values, {call.batch, call.points, call.d + 1}, dtype, false);
  backward(call);
  return {call.out, call.grad_barycentric};
}

}  // namespace permutohedral_filter_ops
}  // namespace fastseg
