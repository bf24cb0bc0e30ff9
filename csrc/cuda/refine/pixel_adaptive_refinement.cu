// masks_i <- sum_n w_in masks_n over a pixel's neighbours, the weights w, and the transpose of a
// pass: out_j <- the sum of w_in grad_i over all pixels i whose neighbour n is j.
//
// A thread makes a pixel of up to kPlanes masks: threads of a warp are neighbours along a row, so
// that weights, (neighbours, H, W), and masks are read in whole lines, and a weight serves all of a
// thread's masks from a register. For the transpose a thread looks, along both axes, for the pixels
// that lead here: one, or at an edge all those that would leave the image there. No atomics: the
// order of all sums is fixed.
//
// Floor of a pass for N neighbours, C masks and P pixels of float32: 4 N P C / kPlanes bytes of
// weights, 8 C P of masks, and 2 N C P FLOPs. 48 x 21 x 512^2: 151 + 44 MB, 65 us at 3 TB/s, and 9
// us at 60 TFLOP/s.

#include <limits>

#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/refine/pixel_adaptive_refinement.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
template <class T>
constexpr int kPlanes = 32 / sizeof(T);  // of a thread: their sums stay in registers

__device__ inline int within(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

// Calls body(n, rows, columns, added) for each neighbour n. Unrolled, the bodies would need a
// stack.
template <class T, class Body>
__device__ inline void for_neighbors(const Refinement<T>& op, const Body& body) {
  for (int d = 0; d < op.dilations; ++d) {
    const auto& ring = op.rings[d];
#pragma unroll 1
    for (int k = 0; k < kDirections; ++k) {
      const int row = row_of(k), column = column_of(k);
      body(d * kDirections + k, row * ring.rows, column * ring.columns,
           row != 0 && column != 0 ? ring.diagonal : ring.straight);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    refinement_affinity(Refinement<T> op, FastDivisor width, bool pamr, int channels,
                        const T* image, T* all_weights) {
  const int pixels = op.height * op.width, pixel = blockIdx.x * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int y = pixel / width, x = pixel - y * op.width;
  T* const weights = all_weights + pixel;
  const T count = op.dilations * kDirections;
  // Copies of the pixel itself, in PAMR's windows.
  const T copies = pamr ? op.dilations : 0, samples = count + copies;
  for (int channel = 0; channel < channels; ++channel) {
    const T* const plane = image + int64_t{channel} * pixels;
    const T centre = plane[pixel];
    const auto difference = [&](int rows, int columns) {
      const int row = within(y + rows, op.height), column = within(x + columns, op.width);
      return plane[row * op.width + column] - centre;
    };
    T mean = 0;
    for_neighbors(op, [&](int, int rows, int columns, T) { mean += difference(rows, columns); });
    mean /= samples;
    T squares = copies * mean * mean;
    for_neighbors(op, [&](int, int rows, int columns, T) {
      const T deviation = difference(rows, columns) - mean;
      squares += deviation * deviation;
    });
    const T deviation = sqrt(squares / (samples - 1));
    const T scale = pamr ? T(kDeviationFloor) + T(kPamrWidth) * deviation
                         : (deviation + T(kDeviationFloor)) * T(kParWidth);
    for_neighbors(op, [&](int n, int rows, int columns, T) {
      const T scaled = difference(rows, columns) / scale;
      const T distance = pamr ? (scaled < 0 ? -scaled : scaled) : scaled * scaled;
      T& sum = weights[int64_t{n} * pixels];
      sum = channel == 0 ? distance : sum + distance;
    });
  }
  T least = weights[0], sum = 0;
  for_neighbors(op, [&](int n, int, int, T) {
    const T distance = weights[int64_t{n} * pixels];
    least = distance < least ? distance : least;
  });
  for_neighbors(op, [&](int n, int, int, T) {
    T& weight = weights[int64_t{n} * pixels];
    weight = exp((least - weight) / channels);
    sum += weight;
  });
  for_neighbors(op, [&](int n, int, int, T added) {
    T& weight = weights[int64_t{n} * pixels];
    weight = weight / sum + added;
  });
}

// The pixels of an axis that have pixel i as their neighbour at that distance.
struct Sources {
  int begin, end;

  __device__ Sources(int i, int distance, int size) : begin(i - distance), end(begin + 1) {
    if (distance < 0 && i == 0) begin = 0;
    if (distance > 0 && i == size - 1) end = size;
    if (begin < 0 || begin >= size) end = begin;
    if (end > size) end = size;
  }
};

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    refinement_step(Refinement<T> op, FastDivisor width, FastDivisor blocks, int planes,
                    const T* all_weights, const T* all_in, T* all_out) {
  const int pixels = op.height * op.width;
  const int group = static_cast<int>(blockIdx.x) / blocks;
  const int pixel = (static_cast<int>(blockIdx.x) - group * blocks) * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int y = pixel / width, x = pixel - y * op.width;
  const int left = planes - group * kPlanes<T>;
  const T* const in = all_in + int64_t{group} * kPlanes<T> * pixels;
  T sums[kPlanes<T>] = {};
  const auto add = [&](T weight, int from) {
#pragma unroll
    for (int plane = 0; plane < kPlanes<T>; ++plane) {
      if (plane < left) sums[plane] += weight * in[plane * pixels + from];
    }
  };
  for_neighbors(op, [&](int n, int rows, int columns, T) {
    const T* const weights = all_weights + int64_t{n} * pixels;
    if (kTransposed) {
      const Sources down(y, rows, op.height), across(x, columns, op.width);
      for (int row = down.begin; row < down.end; ++row) {
        for (int column = across.begin; column < across.end; ++column) {
          add(weights[row * op.width + column], row * op.width + column);
        }
      }
    } else {
      const int row = within(y + rows, op.height), column = within(x + columns, op.width);
      add(weights[pixel], row * op.width + column);
    }
  });
  T* const out = all_out + int64_t{group} * kPlanes<T> * pixels + pixel;
#pragma unroll
  for (int plane = 0; plane < kPlanes<T>; ++plane) {
    if (plane < left) out[plane * pixels] = sums[plane];
  }
}

template <class T>
int blocks_of(const Refinement<T>& op) {
  return (op.height * op.width + kThreads - 1) / kThreads;
}

}  // namespace

template <class T>
cudaError_t refinement_weights(const Refinement<T>& op, Affinity affinity, int channels,
                               const T* image, T* weights, cudaStream_t stream) {
  FASTSEG_LAUNCH((refinement_affinity<T>), blocks_of(op), kThreads, 0, stream, op,
                 FastDivisor(op.width), affinity == Affinity::kPamr, channels, image, weights);
  return cudaGetLastError();
}

template <class T>
cudaError_t refinement_pass(const Refinement<T>& op, bool transposed, int planes, const T* weights,
                            const T* in, T* out, cudaStream_t stream) {
  const int blocks = blocks_of(op), groups = (planes + kPlanes<T> - 1) / kPlanes<T>;
  const int64_t all = int64_t{blocks} * groups;
  if (all > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  const auto grid = static_cast<unsigned>(all);
  const FastDivisor width(op.width), divisor(blocks);
  if (transposed) {
    FASTSEG_LAUNCH((refinement_step<T, true>), grid, kThreads, 0, stream, op, width, divisor,
                   planes, weights, in, out);
  } else {
    FASTSEG_LAUNCH((refinement_step<T, false>), grid, kThreads, 0, stream, op, width, divisor,
                   planes, weights, in, out);
  }
  return cudaGetLastError();
}

#define FASTSEG_INSTANTIATE(T)                                                                  \
  template cudaError_t refinement_weights(const Refinement<T>&, Affinity, int, const T*, T*,    \
                                          cudaStream_t);                                        \
  template cudaError_t refinement_pass(const Refinement<T>&, bool, int, const T*, const T*, T*, \
                                       cudaStream_t);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
