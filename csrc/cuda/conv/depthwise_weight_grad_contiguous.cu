// dw[c, tap] = the sum over all images and pixels p of x[c, p + tap] grad[c, p], for contiguous
// images whose size is kept.
//
// A block takes a plane of x and of grad, in shared memory where they fit; a thread walks down the
// rows of a phase (depthwise_plane.h), the last K numbers of grad in registers, by which a row of x
// is multiplied. The threads' sums are added in a fixed order, the images' in theirs.
//
// Floor: x and grad read once; multiply-adds as many as the convolution has.

#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_plane.h"
#include "cuda/conv/rolling_rows.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

template <class T>
struct PlanesWeightGrad {
  const T* x;
  const T* grad;
  Compute<T>* sums;  // (images * item_blocks, K * K, channels)
  FastDivisor channels;
  DepthwisePlanes planes;
};

template <class T, int K>
__device__ inline void add_products(const DepthwisePlanes& planes, const PlaneItem& item,
                                    const T* x, const T* grad, Compute<T> (&sums)[K * K]) {
  using F = Compute<T>;
  constexpr int R = K / 2, Q = kColumns<K>;
  const TapColumns<K> taps(planes, item.column, 0);
  const int step = planes.row_step * planes.width;
  int row = (item.phase + (item.first - R) * planes.row_step) * planes.width;
  F grads[K][Q] = {};  // of output k + R in grads[k % K]; zero where there is no such column
  for (int first = item.first - R; first < item.last + R; first += kSteps<K>) {
#pragma unroll
    for (int u = 0; u < kSteps<K>; ++u) {
      const int k = first + u;
      if (k >= item.last + R) break;
      // Output k + R - a reads row k as its tap a.
      if (k + R < item.last) {
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          if (taps.exists[q]) {
            grads[u][q] = to_compute(grad[row + R * step + item.column + q * planes.apart]);
          }
        }
      }
      if (k >= 0 && k < item.length) {
        F values[Q][K];
#pragma unroll
        for (int q = 0; q < Q; ++q) {
#pragma unroll
          for (int b = 0; b < K; ++b) {
            values[q][b] = taps.lives[q][b] ? to_compute(x[taps.begin[q][b] + row]) : F(0);
          }
        }
#pragma unroll
        for (int a = 0; a < K; ++a) {
          const int output = k + R - a;
          if (output < item.first || output >= item.last) continue;
#pragma unroll
          for (int q = 0; q < Q; ++q) {
#pragma unroll
            for (int b = 0; b < K; ++b) {
              // Not 0 * grad: that is NaN where grad is infinite.
              if (!taps.exists[q] || !taps.lives[q][b]) continue;
              sums[a * K + b] += grads[(u - a + K) % K][q] * values[q][b];
            }
          }
        }
      }
      row += step;
      roll(grads);
    }
  }
}

// Adds up the threads' sums: those of a warp, then the warps', which `scratch` has room for.
template <class F, int K>
__device__ inline void store_sums(F (&sums)[K * K], F* scratch, F* out, int channels) {
#pragma unroll
  for (int tap = 0; tap < K * K; ++tap) {
    for (int bits = 16; bits > 0; bits /= 2) sums[tap] += __shfl_xor_sync(~0u, sums[tap], bits);
  }
  __syncthreads();  // all have read what was in shared memory
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap) scratch[threadIdx.x / 32 * (K * K) + tap] = sums[tap];
  }
  __syncthreads();
  if (threadIdx.x < K * K) {
    F sum = 0;
    const int warps = blockDim.x / 32;
    for (int warp = 0; warp < warps; ++warp) sum += scratch[warp * (K * K) + threadIdx.x];
    out[int64_t{threadIdx.x} * channels] = sum;
  }
}

template <class T, int K>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks)
    depthwise_weight_grad_planes(PlanesWeightGrad<T> op) {
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int plane = static_cast<int>(blockIdx.x) / op.planes.item_blocks;
  const int part = static_cast<int>(blockIdx.x) - plane * op.planes.item_blocks;
  const int area = op.planes.height * op.planes.width;
  const T *x = op.x + int64_t{plane} * area, *grad = op.grad + int64_t{plane} * area;
  if (op.planes.staged) {
    T* const staged_x = staged_at(shared, x);
    T* const staged_grad = staged_at(shared + op.planes.bytes(sizeof(T)), grad);
    stage(x, area, staged_x);
    stage(grad, area, staged_grad);
    x = staged_x;
    grad = staged_grad;
    wait_for_copies();
    __syncthreads();
  }
  F sums[K * K] = {};
  const int items = static_cast<int>(op.planes.items()), parts = op.planes.item_blocks;
  for (int i = part * blockDim.x + threadIdx.x; i < items; i += parts * blockDim.x) {
    add_products<T, K>(op.planes, op.planes[i], x, grad, sums);
  }
  const int image = plane / op.channels, channel = plane - image * op.channels;
  const int64_t run = int64_t{image} * parts + part;
  store_sums<F, K>(sums, reinterpret_cast<F*>(shared),
                   op.sums + run * (K * K) * op.channels + channel, op.channels);
}

template <int K>
DepthwisePlanes planes_of(const DepthwiseShape& shape) {
  return DepthwisePlanes(shape, kColumns<K>, /*may_stage=*/true, /*most_in_block=*/1);
}

template <class T, int K>
void launch(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  const DepthwisePlanes planes = planes_of<K>(op.shape);
  const PlanesWeightGrad<T> job{static_cast<const T*>(op.x), static_cast<const T*>(op.grad),
                                static_cast<Compute<T>*>(op.sums), FastDivisor(op.shape.channels),
                                planes};
  const int64_t scratch = kPlaneThreads / 32 * K * K * static_cast<int64_t>(sizeof(Compute<T>));
  const int64_t bytes = std::max(planes.staged ? 2 * planes.bytes(sizeof(T)) : 0, scratch);
  if (allow_shared(&depthwise_weight_grad_planes<T, K>, bytes) != cudaSuccess) return;
  FASTSEG_LAUNCH((depthwise_weight_grad_planes<T, K>), planes.blocks(), planes.threads, bytes,
                 stream, job);
}

}  // namespace

int64_t depthwise_weight_grad_contiguous_runs(const DepthwiseWeightGrad& op) {
  int64_t runs = 0;
  if (!is_of_planes(op.shape)) return runs;
  with_square(op.shape, [&](auto, auto kernel) {
    runs = op.shape.images * planes_of<kernel>(op.shape).item_blocks;
    return true;
  });
  return runs;
}

void depthwise_weight_grad_contiguous(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  with_square(op.shape, [&](auto zero, auto kernel) {
    launch<decltype(zero), kernel>(op, stream);
    return true;
  });
}

}  // namespace fastseg::cuda
