// fastseg::permutohedral_filter and its backward on the CPU: the lattice's tensors, whose indices
// are checked, become a view, which permutohedral_filter_core.cpp filters on.

#include "cpu/crf/permutohedral_filter.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/permutohedral_filter_ops.h"
#include "cpu/crf/index_checks.h"
#include "cpu/threads/torch_crew.h"

namespace fastseg::cpu {
namespace {

// A lattice put together by hand must not be believed.
void check_range(const TaskRunner& tasks, const char* name, const int32_t* list, int64_t size,
                 int64_t end) {
  check_indices(tasks, "fastseg::permutohedral_filter", name, list, size, end);
}

void check_starts(const char* name, const int32_t* starts, int64_t parts, int64_t end) {
  bool good = starts[0] == 0 && starts[parts] == end;
  for (int64_t i = 0; i < parts; ++i) good &= starts[i] <= starts[i + 1];
  FASTSEG_CHECK(good, "fastseg::permutohedral_filter: ", name, " must ascend from 0 to ", end);
}

template <class T>
LatticeView<T> view_of(const FilterCall& call, const TaskRunner& tasks) {
  const auto integers = [](const Tensor& t) {
    return static_cast<const int32_t*>(t.const_data_ptr());
  };
  LatticeView<T> view;
  view.d = static_cast<int>(call.d);
  view.batch = call.batch, view.points = call.points;
  view.tiles = call.tiles, view.rows = call.rows, view.vertices = call.vertices;
  view.slots = integers(call.slots);
  view.barycentric = static_cast<const T*>(call.barycentric.const_data_ptr());
  view.tile_starts = integers(call.tile_starts);
  view.tile_vertices = integers(call.tile_vertices);
  view.vertex_rows = integers(call.vertex_rows);
  view.vertex_starts = integers(call.vertex_starts);
  view.neighbors = integers(call.neighbors);
  check_starts("tile_starts", view.tile_starts, view.tiles, view.rows);
  check_starts("vertex_starts", view.vertex_starts, view.vertices, view.rows);
  check_range(tasks, "tile_vertices", view.tile_vertices, view.rows, view.vertices);
  check_range(tasks, "vertex_rows", view.vertex_rows, view.rows, view.rows);
  check_range(tasks, "neighbors", view.neighbors, (call.d + 1) * 2 * view.vertices,
              view.vertices + 1);
  for (int64_t t = 0; t < view.tiles; ++t) {
    const auto tile = view.tile(t);
    const int64_t first = (tile.image * view.points + tile.begin) * (call.d + 1);
    check_range(tasks, "slots", view.slots + first, (tile.end - tile.begin) * (call.d + 1),
                view.tile_starts[t + 1] - view.tile_starts[t]);
  }
  return view;
}

// Calls body(T{}, tasks) with the values' type and torch's threads.
template <class Body>
void run_as(const FilterCall& call, const Body& body) {
  with_torch_crew(call.values.numel(), [&](const TaskRunner& tasks) {
    call.with_type([&](auto zero) { body(zero, tasks); });
  });
}

void forward(const FilterCall& call) {
  run_as(call, [&](auto zero, const TaskRunner& tasks) {
    using T = decltype(zero);
    filter(view_of<T>(call, tasks), call.blur, static_cast<T>(call.gain), call.channels,
           static_cast<const T*>(call.values.const_data_ptr()),
           static_cast<T*>(call.out.mutable_data_ptr()), tasks);
  });
}

void backward(const FilterCall& call) {
  run_as(call, [&](auto zero, const TaskRunner& tasks) {
    using T = decltype(zero);
    filter_backward(view_of<T>(call, tasks), call.blur, static_cast<T>(call.gain), call.channels,
                    static_cast<const T*>(call.grad.const_data_ptr()),
                    static_cast<const T*>(call.values.const_data_ptr()),
                    static_cast<T*>(call.out.mutable_data_ptr()),
                    static_cast<T*>(call.grad_barycentric.mutable_data_ptr()), tasks);
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::permutohedral_filter_ops;
  m.impl("permutohedral_filter", TORCH_BOX(&ops::permutohedral_filter<fastseg::cpu::forward>));
  m.impl("permutohedral_filter_backward",
         TORCH_BOX(&ops::permutohedral_filter_backward<fastseg::cpu::backward>));
}
