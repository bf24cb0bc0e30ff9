// out_i = w_0 in_i + sum_k w_k (in_{i-k} + in_{i+k}) along one axis, a launch for each axis
// (spatial_gaussian_pass.h).
//
// Floor: an element in and out for each axis, 8 bytes in float32 (500x375x24: 36 MB, 12 us), and
// r + 1 multiply-adds and r additions with r = 5.3 sigma: 6.5 us at sigma 3 and 60 TFLOP/s. The
// tile's halo is read (stretch + 2 r) / stretch times. A tile that does not fit shared memory with
// its halo, as the device alone can know, reads from the caches.

#include <limits>

#include "common/crf/gaussian_taps.h"
#include "cuda/crf/spatial_gaussian_filter.h"
#include "cuda/crf/spatial_gaussian_pass.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kTapThreads = 256;

template <class T, class Sigma>
__global__ void __launch_bounds__(kTapThreads)
    spatial_gaussian_taps(const Sigma* bandwidth, double reach, int64_t size, bool derivative,
                          T* taps, int* radius) {
  const double sigma = *bandwidth;
  FASTSEG_DEVICE_CHECK(sigma > 0 && sigma <= 1.7976931348623157e308,
                       "fastseg::spatial_gaussian_filter: sigma must be positive and finite");
  const int last = static_cast<int>(gaussian_radius(sigma, reach, size));
  for (int k = threadIdx.x; k <= last; k += kTapThreads) {
    taps[k] = static_cast<T>(gaussian_tap(k, sigma, derivative));
  }
  if (threadIdx.x == 0) *radius = last;
}

template <class T, int V, bool kLines>
__global__ void __launch_bounds__(GaussianPass<T, V>::kThreads, V * sizeof(T) == 16 ? 3 : 5)
    spatial_gaussian_pass(GaussianPass<T, V> op) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  gaussian_tile<T, V, kLines>(op, blockIdx.x, shared);
}

template <class T, int V, bool kLines>
cudaError_t launch_tiles(int64_t outer, int64_t size, int64_t inner, const T* in, T* out,
                         const T* taps, const int* radius, cudaStream_t stream) {
  const auto op = gaussian_pass<T, V>(kLines, outer, size, inner, in, out, taps, radius);
  if (op.blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  FASTSEG_LAUNCH((spatial_gaussian_pass<T, V, kLines>), static_cast<unsigned>(op.blocks),
                 static_cast<unsigned>(op.threads), static_cast<size_t>(op.shared_bytes), stream,
                 op);
  return cudaGetLastError();
}

// The pass along an axis of `size` elements that are `inner` apart, `outer` times.
template <class T>
cudaError_t launch_pass(int64_t outer, int64_t size, int64_t inner, const T* in, T* out,
                        const T* taps, const int* radius, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (inner == 1) {
    return launch_tiles<T, 1, true>(outer, size, inner, in, out, taps, radius, stream);
  }
  if (inner % V == 0 && is_aligned(in, kVectorBytes) && is_aligned(out, kVectorBytes)) {
    return launch_tiles<T, V, false>(outer, size, inner, in, out, taps, radius, stream);
  }
  return launch_tiles<T, 1, false>(outer, size, inner, in, out, taps, radius, stream);
}

}  // namespace

template <class T, class Sigma>
cudaError_t make_taps(const PixelGrid& grid, const Sigma* sigma, int derivative,
                      const AxisTaps<T>& out, cudaStream_t stream) {
  T* taps = out.taps;
  for (int a = 0; a < grid.axes; ++a) {
    const bool derives = a == derivative;
    FASTSEG_LAUNCH((spatial_gaussian_taps<T, Sigma>), 1, kTapThreads, 0, stream, sigma + a,
                   gaussian_reach<T>(derives), grid.sizes[a], derives, taps, out.radii + a);
    taps += grid.sizes[a];
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t spatial_gaussian_filter(const PixelGrid& grid, const AxisTaps<T>& taps, const T* in,
                                    T* out, T* scratch, cudaStream_t stream) {
  return for_passes(grid, taps, in, out, scratch,
                    [stream](int64_t outer, int64_t size, int64_t inner, const T* from, T* to,
                             const T* axis_taps, const int* radius) {
                      return launch_pass(outer, size, inner, from, to, axis_taps, radius, stream);
                    });
}

#define FASTSEG_INSTANTIATE(T)                                                                     \
  template cudaError_t make_taps(const PixelGrid&, const float*, int, const AxisTaps<T>&,          \
                                 cudaStream_t);                                                    \
  template cudaError_t make_taps(const PixelGrid&, const double*, int, const AxisTaps<T>&,         \
                                 cudaStream_t);                                                    \
  template cudaError_t spatial_gaussian_filter(const PixelGrid&, const AxisTaps<T>&, const T*, T*, \
                                               T*, cudaStream_t);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
