// The Gaussian filter of the pixel grid on the CPU: its taps, and how its work is cut.

#include <algorithm>

#include "common/crf/gaussian_taps.h"
#include "cpu/crf/spatial_gaussian_filter.h"

namespace fastseg::cpu {

template <class T>
int64_t SpatialGaussian<T>::strip() const {
  // The strip's height pass stays in a second-level cache; an input row is
  // read (strip + 2 radius) / strip times.
  constexpr int64_t kBytes = 512 << 10;
  const int64_t rows = kBytes / std::max<int64_t>(1, row() * int64_t{sizeof(T)});
  return std::clamp<int64_t>(rows / 4 * 4, 4, 64);
}

template <class T>
SpatialGaussian<T> spatial_gaussian(const int64_t* sizes, const double* sigma, int axes,
                                    int derivative, int64_t lanes) {
  SpatialGaussian<T> op{{1, 1, 1}, lanes, {}};
  for (auto& taps : op.taps) taps = {T{1}};
  for (int a = 0; a < axes; ++a) {
    op.sizes[3 - axes + a] = sizes[a];
    op.taps[3 - axes + a] = gaussian_taps<T>(sigma[a], sizes[a], a == derivative);
  }
  return op;
}

namespace {

// Calls body(slice, begin, end) for all strips of rows of `slices` slices.
template <class T, class Body>
void for_strips(const SpatialGaussian<T>& op, int64_t slices, const TaskRunner& tasks,
                const Body& body) {
  const int64_t height = op.sizes[1], strip = op.strip();
  const int64_t strips = (height + strip - 1) / strip;
  tasks.run(slices * strips, [&](int64_t task) {
    const int64_t begin = task % strips * strip;
    body(task / strips, begin, std::min(height, begin + strip));
  });
}

}  // namespace

template <class T>
void spatial_gaussian_depths(const SpatialGaussian<T>& op, const T* in, T* out,
                             const TaskRunner& tasks) {
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, spatial_gaussian_depth<T>);
  for_strips(op, op.sizes[0], tasks, [&](int64_t slice, int64_t begin, int64_t end) {
    kernel(op, in, slice, begin, end, out + slice * op.slice() + begin * op.row());
  });
}

template <class T>
void spatial_gaussian_filter(const SpatialGaussian<T>& op, int64_t images, const T* in, T* out,
                             T* scratch, const TaskRunner& tasks) {
  if (op.volume() == 0) return;
  const auto rows = FASTSEG_SIMD_DISPATCH_OF(T, spatial_gaussian_rows<T>);
  const auto planar = [&](const T* from, T* to, int64_t slices) {
    for_strips(op, slices, tasks, [&](int64_t slice, int64_t begin, int64_t end) {
      const int64_t offset = slice * op.slice();
      rows(op, from + offset, begin, end, to + offset + begin * op.row());
    });
  };
  if (!op.has_depth()) return planar(in, out, images * op.sizes[0]);
  for (int64_t image = 0; image < images; ++image) {
    const int64_t offset = image * op.volume();
    spatial_gaussian_depths(op, in + offset, scratch, tasks);
    planar(scratch, out + offset, op.sizes[0]);
  }
}

#define FASTSEG_INSTANTIATE(T)                                                                   \
  template struct SpatialGaussian<T>;                                                            \
  template SpatialGaussian<T> spatial_gaussian<T>(const int64_t*, const double*, int, int,       \
                                                  int64_t);                                      \
  template void spatial_gaussian_depths<T>(const SpatialGaussian<T>&, const T*, T*,              \
                                           const TaskRunner&);                                   \
  template void spatial_gaussian_filter<T>(const SpatialGaussian<T>&, int64_t, const T*, T*, T*, \
                                           const TaskRunner&);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu
