// The filter on a lattice, and its gradient, by tasks: permutohedral_filter.h.

#include <algorithm>

#include "cpu/crf/permutohedral_filter.h"
#include "cpu/memory/buffer.h"

namespace fastseg::cpu {
namespace {

template <class T>
class Filter {
 public:
  Filter(const LatticeView<T>& lattice, int64_t channels, const TaskRunner& tasks)
      : lattice_(lattice), channels_(channels), stride_(row_stride(channels)), tasks_(tasks) {}

  // Splat and blur: a row for each vertex, at `result` within the memory that is returned.
  Buffer<T> blurred(const BlurOptions& options, const T* values, const T*& result) const {
    const int64_t size = (lattice_.vertices + 1) * stride_;
    const Buffer<T> rows(lattice_.rows * stride_);
    const auto splat = FASTSEG_SIMD_DISPATCH_OF(T, splat_tile<T>);
    tasks_.run(lattice_.tiles, [&](int64_t t) {
      splat(tile(t), values + first(t), rows.get() + lattice_.tile_starts[t] * stride_);
    });
    Buffer<T> buffers(size * (1 + blur_buffers(options)));
    T* const scratch[] = {buffers.get() + size, buffers.get() + 2 * size};
    reduce(lattice_, stride_, rows.get(), buffers.get(), tasks_);
    result = blur(lattice_, options, stride_, buffers.get(), scratch, tasks_);
    return buffers;
  }

  void slice(const T* rows, T gain, T* out) const {
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, slice_tile<T>);
    tasks_.run(lattice_.tiles, [&](int64_t t) { kernel(tile(t), rows, gain, out + first(t)); });
  }

  void weight_gradient(WeightGradient<T> op) const {
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, weight_gradient_tile<T>);
    tasks_.run(lattice_.tiles, [&](int64_t t) {
      WeightGradient<T> here = op;
      here.grad += first(t), here.values += first(t), here.out += entry(t);
      kernel(tile(t), here);
    });
  }

 private:
  // Where a tile's values and its slots begin.
  int64_t first(int64_t t) const {
    const auto tile = lattice_.tile(t);
    return tile.image * channels_ * lattice_.points + tile.begin;
  }
  int64_t entry(int64_t t) const {
    const auto tile = lattice_.tile(t);
    return (tile.image * lattice_.points + tile.begin) * (lattice_.d + 1);
  }

  FilterTile<T> tile(int64_t t) const {
    const auto tile = lattice_.tile(t);
    const int32_t start = lattice_.tile_starts[t];
    return {lattice_.d + 1,
            tile.end - tile.begin,
            channels_,
            stride_,
            lattice_.points,
            lattice_.slots + entry(t),
            lattice_.barycentric + entry(t),
            lattice_.tile_starts[t + 1] - start,
            lattice_.tile_vertices + start};
  }

  const LatticeView<T>& lattice_;
  int64_t channels_, stride_;
  const TaskRunner& tasks_;
};

}  // namespace

template <class T>
void filter(const LatticeView<T>& lattice, const BlurOptions& options, T gain, int64_t channels,
            const T* values, T* out, const TaskRunner& tasks) {
  if (channels == 0) return;
  const Filter<T> op(lattice, channels, tasks);
  const T* rows;
  const Buffer<T> memory = op.blurred(options, values, rows);
  op.slice(rows, gain, out);
}

template <class T>
void filter_backward(const LatticeView<T>& lattice, const BlurOptions& options, T gain,
                     int64_t channels, const T* grad, const T* values, T* grad_values,
                     T* grad_barycentric, const TaskRunner& tasks) {
  if (channels == 0) {
    std::fill_n(grad_barycentric, lattice.batch * lattice.points * (lattice.d + 1), T{0});
    return;
  }
  const Filter<T> op(lattice, channels, tasks);
  BlurOptions transposed = options;
  transposed.reverse = !options.reverse;
  const T *grad_rows = nullptr, *value_rows = nullptr;
  const Buffer<T> grad_memory = op.blurred(transposed, grad, grad_rows);
  const Buffer<T> value_memory = op.blurred(options, values, value_rows);
  op.slice(grad_rows, gain, grad_values);
  op.weight_gradient({grad, values, grad_rows, value_rows, gain, grad_barycentric});
}

#define FASTSEG_INSTANTIATE(T)                                                                   \
  template void filter(const LatticeView<T>&, const BlurOptions&, T, int64_t, const T*, T*,      \
                       const TaskRunner&);                                                       \
  template void filter_backward(const LatticeView<T>&, const BlurOptions&, T, int64_t, const T*, \
                                const T*, T*, T*, const TaskRunner&);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu
