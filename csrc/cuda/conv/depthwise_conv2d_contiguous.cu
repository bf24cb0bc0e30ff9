// y = act(conv(x) * scale + shift + residual) for contiguous images whose size is kept.
//
// A thread walks down the rows of a phase (depthwise_plane.h). A row of x enters once for all K
// rows of outputs that read it, whose sums are in registers, as are the plane's weights. Planes
// that fit pass through shared memory, in and out in accesses of 16 bytes, wherever they begin: a
// plane of an odd size begins anywhere.
//
// Floor: x and the residual read, y written; about 25 instructions an output, 6 us for 65 x 65 x
// 2048, where the bytes take 8 in bfloat16.

#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_plane.h"
#include "cuda/conv/depthwise_weights.h"
#include "cuda/conv/rolling_rows.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int64_t kMostPlanes = 8;  // of a block

template <class T>
struct PlanesConv2d : DepthwiseTensors<T> {
  bool flip;
  FastDivisor channels;
  DepthwisePlanes planes;
};

// y, which may hold the residual, from x: both of one plane, kStaged in shared memory, where
// x[zeros] is zero.
template <class T, int K, bool kPlain, bool kStaged>
__device__ inline void convolve(const PlanesConv2d<T>& op, const PackWeights<T, K, 1>& weights,
                                const PlaneItem& item, const T* x, int zeros, const T* residual,
                                T* y) {
  using F = Compute<T>;
  constexpr int R = K / 2, Q = kColumns<K>;
  const TapColumns<K> taps(op.planes, item.column, zeros);
  const int step = op.planes.row_step * op.planes.width;
  int row = (item.phase + (item.first - R) * op.planes.row_step) * op.planes.width;
  // The sums of output k + R - a, which reads row k as its tap a, are sums[(k - a) % K].
  F sums[K][Q];
#pragma unroll
  for (int i = 0; i < K * Q; ++i) sums[i / Q][i % Q] = weights.start();
  for (int first = item.first - R; first < item.last + R; first += kSteps<K>) {
#pragma unroll
    for (int u = 0; u < kSteps<K>; ++u) {
      const int k = first + u;
      if (k >= item.last + R) break;
      if (k >= 0 && k < item.length) {
#pragma unroll
        for (int q = 0; q < Q; ++q) {
#pragma unroll
          for (int b = 0; b < K; ++b) {
            F value = 0;
            if (kStaged || taps.lives[q][b]) {
              value = to_compute(x[taps.begin[q][b] + taps.lives[q][b] * row]);
            }
#pragma unroll
            for (int a = 0; a < K; ++a) {
              sums[(u - a + K) % K][q] += weights.of(a * K + b) * value;
            }
          }
        }
      }
      F(&sum)[Q] = sums[(u + 1) % K];  // of the outputs that read row k last
      if (k - R >= item.first) {
        const int to = row - R * step + item.column;
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          if (!kPlain && residual != nullptr && taps.exists[q]) {
            sum[q] += to_compute(residual[to + q * op.planes.apart]);
          }
        }
        activate<kPlain>(op.activation, sum);
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          if (taps.exists[q]) y[to + q * op.planes.apart] = from_compute<T>(sum[q]);
        }
      }
#pragma unroll
      for (int q = 0; q < Q; ++q) sum[q] = weights.start();
      row += step;
      roll(sums);
    }
  }
}

template <class T, int K, bool kPlain>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks)
    depthwise_conv2d_staged_planes(PlanesConv2d<T> op) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int plane = blockIdx.x * op.planes.in_block, area = op.planes.height * op.planes.width;
  const int left = op.planes.planes - plane;
  const int planes = left < op.planes.in_block ? left : op.planes.in_block;
  const int64_t origin = int64_t{plane} * area;
  T* const x = staged_at(shared, op.x + origin);
  T* const y = staged_at(shared + op.planes.bytes(sizeof(T)), op.y + origin);
  T* const zeros = reinterpret_cast<T*>(shared + 2 * op.planes.bytes(sizeof(T)));
  if (threadIdx.x == 0) *zeros = from_compute<T>(0);
  stage(op.x + origin, planes * area, x);
  if (!kPlain && op.residual != nullptr) stage(op.residual + origin, planes * area, y);
  wait_for_copies();
  __syncthreads();
  const int items = static_cast<int>(op.planes.items());
  for (int p = 0; p < planes; ++p) {
    PackWeights<T, K, 1> weights;
    weights.load(op.weight, op.vectors, (plane + p) % op.channels, op.flip);
    for (int i = threadIdx.x; i < items; i += blockDim.x) {
      T* const to = y + p * area;
      convolve<T, K, kPlain, true>(op, weights, op.planes[i], x + p * area,
                                   static_cast<int>(zeros - x) - p * area,
                                   op.residual == nullptr ? nullptr : to, to);
    }
  }
  __syncthreads();
  unstage(y, planes * area, op.y + origin);
}

// For planes that do not fit shared memory, and for a residual that begins elsewhere than y.
template <class T, int K, bool kPlain>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks)
    depthwise_conv2d_planes(PlanesConv2d<T> op) {
  const int plane = static_cast<int>(blockIdx.x) / op.planes.item_blocks;
  const int block = static_cast<int>(blockIdx.x) - plane * op.planes.item_blocks;
  const int i = block * blockDim.x + threadIdx.x;
  if (i >= op.planes.items()) return;
  const int64_t origin = int64_t{plane} * op.planes.height * op.planes.width;
  PackWeights<T, K, 1> weights;
  weights.load(op.weight, op.vectors, plane % op.channels, op.flip);
  convolve<T, K, kPlain, false>(op, weights, op.planes[i], op.x + origin, 0,
                                op.residual == nullptr ? nullptr : op.residual + origin,
                                op.y + origin);
}

// Whether the residual can be kept where y is made.
bool lies_like(const void* residual, const void* y) {
  const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes; };
  return residual == nullptr || offset(residual) == offset(y);
}

template <class T, int K>
void launch(const DepthwiseConv2d& op, cudaStream_t stream) {
  const DepthwisePlanes planes(op.shape, kColumns<K>, lies_like(op.residual, op.y), kMostPlanes);
  const PlanesConv2d<T> job{DepthwiseTensors<T>(op), op.transposed, FastDivisor(op.shape.channels),
                            planes};
  with_plain<K>(op.activation, op.residual, [&](auto plain) {
    if (!planes.staged) {
      FASTSEG_LAUNCH((depthwise_conv2d_planes<T, K, plain>), planes.blocks(), planes.threads, 0,
                     stream, job);
      return;
    }
    const int64_t bytes = 2 * planes.bytes(sizeof(T)) + kVectorBytes;
    constexpr auto kernel = &depthwise_conv2d_staged_planes<T, K, plain>;
    if (allow_shared(kernel, bytes) != cudaSuccess) return;
    FASTSEG_LAUNCH(kernel, planes.blocks(), planes.threads, bytes, stream, job);
  });
}

}  // namespace

bool depthwise_conv2d_contiguous(const DepthwiseConv2d& op, cudaStream_t stream) {
  if (!is_of_planes(op.shape)) return false;
  return with_square(op.shape, [&](auto zero, auto kernel) {
    launch<decltype(zero), kernel>(op, stream);
    return true;
  });
}

}  // namespace fastseg::cuda
