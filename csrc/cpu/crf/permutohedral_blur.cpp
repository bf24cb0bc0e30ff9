// Reduce and blur by tasks, and the filter of all ones.

#include "cpu/crf/permutohedral_blur.h"

#include <algorithm>

#include "cpu/memory/buffer.h"

namespace fastseg::cpu {
namespace {

// Runs body(begin, end) over vertices, about 64 KB of rows a task.
template <class T, class Body>
void for_vertices(const LatticeView<T>& lattice, int64_t stride, const TaskRunner& tasks,
                  const Body& body) {
  const int64_t grain = std::max<int64_t>(64, (int64_t{1} << 16) / (stride * int64_t{sizeof(T)}));
  tasks.run((lattice.vertices + grain - 1) / grain,
            [&](int64_t t) { body(t * grain, std::min(lattice.vertices, (t + 1) * grain)); });
}

}  // namespace

template <class T>
void reduce(const LatticeView<T>& lattice, int64_t stride, const T* rows, T* out,
            const TaskRunner& tasks) {
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, reduce_rows<T>);
  const ReduceRows<T> op{lattice.vertex_rows, lattice.vertex_starts, stride, rows, out};
  std::fill_n(out + lattice.vertices * stride, stride, T{0});
  for_vertices(lattice, stride, tasks, [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

template <class T>
T* blur(const LatticeView<T>& lattice, const BlurOptions& options, int64_t stride, T* values,
        T* const* scratch, const TaskRunner& tasks) {
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, blur_rows<T>);
  for (int i = 0; i < blur_buffers(options); ++i) {
    std::fill_n(scratch[i] + lattice.vertices * stride, stride, T{0});
  }
  const auto step = [&](int axis, const T* in, const T* mean_with, T* out) {
    const BlurStep<T> op{lattice.back(axis),
                         lattice.forward(axis),
                         stride,
                         static_cast<T>(options.side),
                         in,
                         mean_with,
                         out};
    for_vertices(lattice, stride, tasks,
                 [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
  };
  T* const more = options.symmetric ? scratch[1] : nullptr;
  return blur_steps(options, lattice.d + 1, values, scratch[0], more, step);
}

template <class T>
void filter_ones(const LatticeView<T>& lattice, const BlurOptions& options, T gain, T* out,
                 const TaskRunner& tasks) {
  const int64_t d1 = lattice.d + 1, buffer = lattice.vertices + 1;
  const Buffer<T> rows(lattice.rows);
  tasks.run(lattice.tiles, [&](int64_t t) {
    const auto tile = lattice.tile(t);
    T* sums = rows.get() + lattice.tile_starts[t];
    std::fill_n(sums, lattice.tile_starts[t + 1] - lattice.tile_starts[t], T{0});
    const int64_t first = (tile.image * lattice.points + tile.begin) * d1;
    for (int64_t k = first; k < first + (tile.end - tile.begin) * d1; ++k) {
      sums[lattice.slots[k]] += lattice.barycentric[k];
    }
  });
  const Buffer<T> buffers(buffer * (1 + blur_buffers(options)));
  T* const scratch[] = {buffers.get() + buffer, buffers.get() + 2 * buffer};
  reduce(lattice, 1, rows.get(), buffers.get(), tasks);
  const T* blurred = blur(lattice, options, 1, buffers.get(), scratch, tasks);
  tasks.run(lattice.tiles, [&](int64_t t) {
    const auto tile = lattice.tile(t);
    T* local = rows.get() + lattice.tile_starts[t];
    const int32_t* vertices = lattice.tile_vertices + lattice.tile_starts[t];
    const int64_t count = lattice.tile_starts[t + 1] - lattice.tile_starts[t];
    for (int64_t r = 0; r < count; ++r) local[r] = blurred[vertices[r]];
    const int64_t first = tile.image * lattice.points + tile.begin;
    for (int64_t i = first; i < first + tile.end - tile.begin; ++i) {
      T sum = 0;
      for (int64_t r = 0; r < d1; ++r) {
        sum += lattice.barycentric[i * d1 + r] * local[lattice.slots[i * d1 + r]];
      }
      out[i] = sum * gain;
    }
  });
}

#define FASTSEG_INSTANTIATE(T)                                                           \
  template void reduce(const LatticeView<T>&, int64_t, const T*, T*, const TaskRunner&); \
  template T* blur(const LatticeView<T>&, const BlurOptions&, int64_t, T*, T* const*,    \
                   const TaskRunner&);                                                   \
  template void filter_ones(const LatticeView<T>&, const BlurOptions&, T, T*, const TaskRunner&);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu
