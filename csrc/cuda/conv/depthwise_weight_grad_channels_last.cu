// dw[c, tap] = the sum over all images and pixels p of x[c, p + tap] grad[c, p], for channels_last
// images whose size is kept.
//
// A block takes a run of tiles and a chunk of channels; a thread walks down a column of each, the
// sums of its pack's K * K taps in registers, and so are the last K rows of grad: a row of x is
// multiplied by all of them. At the end the columns' sums are added in their order.
//
// Floor: x and grad read once; multiply-adds as many as the convolution has.

#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_tile.h"
#include "cuda/conv/rolling_rows.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int64_t kMostRows = 6;
constexpr int64_t kMostBlocks = 2 * kFewestBlocks;

template <class T>
struct SameWeightGrad {
  const T* x;
  const T* grad;
  Compute<T>* sums;  // (runs, K * K, channels)
  int channels, runs;
  DepthwiseTiles tiles;
};

template <class T, int K>
__global__ void __launch_bounds__(kMostTileThreads, 2)
    depthwise_weight_grad_same(SameWeightGrad<T> op) {
  constexpr int V = kPack<T, K>, R = K / 2;
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  T* const cells = reinterpret_cast<T*>(shared);
  T* const grads = reinterpret_cast<T*>(shared + op.tiles.source_bytes());
  const int run = static_cast<int>(blockIdx.x) / op.tiles.chunks;
  const int chunk = static_cast<int>(blockIdx.x) - run * op.tiles.chunks;
  DepthwiseTile<T, K> at(
      op.tiles, chunk, op.channels,
      reinterpret_cast<TilePlace*>(shared + op.tiles.source_bytes() + op.tiles.tile_bytes()));
  const int tile_rows = op.tiles.tile_rows, source_rows = op.tiles.source_rows();
  F sums[K * K][V] = {};
  const int end = static_cast<int>((run + 1) * op.tiles.count / op.runs);
  for (int tile = static_cast<int>(run * op.tiles.count / op.runs); tile < end; ++tile) {
    __syncthreads();  // all have read the last tile
    at.move_to(tile);
    at.stage_sources(op.x, cells);
    at.stage_column(op.grad, grads);
    wait_for_copies();
    __syncthreads();
    const TilePlace column = at.columns[at.works ? at.slot + R : 0];
    if (!at.works || column.coordinate < 0) continue;
    F grad[K][V] = {};  // of output row j in grad[j % K]
    for (int first = 0; first < source_rows; first += kSteps<K>) {
#pragma unroll
      for (int u = 0; u < kSteps<K>; ++u) {
        const int t = first + u;
        if (t >= source_rows) break;
        if (t < tile_rows && at.rows[t + R].coordinate >= 0) {
          widen(load_pack<V>(grads + at.own_cell(t)), grad[u]);
        }
        const unsigned readers = at.rows[t].readers;
#pragma unroll
        for (int b = 0; b < K; ++b) {
          if (readers == 0 || !(column.sources >> b & 1)) continue;
          F x[V];
          widen(load_pack<V>(cells + at.source_cell(t, b)), x);
          keep(x);
#pragma unroll
          for (int a = 0; a < K; ++a) {
            if (!(readers >> a & 1)) continue;
#pragma unroll
            for (int k = 0; k < V; ++k) {
              sums[a * K + b][k] += grad[(u - a + K) % K][k] * x[k];
            }
          }
        }
        roll(grad);
      }
    }
  }

  // The columns' sums of a tap, (V, tile_columns, lanes): neighbouring threads in neighbouring
  // banks.
  F* const columns = reinterpret_cast<F*>(shared);
  const int lanes = op.tiles.lanes, width = lanes * V, first = chunk * width;
  F* const out = op.sums + int64_t{run} * (K * K) * op.channels + first;
#pragma unroll
  for (int tap = 0; tap < K * K; ++tap) {
    __syncthreads();
    if (at.works) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        columns[(k * op.tiles.tile_columns + at.slot) * lanes + at.lane] = sums[tap][k];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width && first + i < op.channels; i += blockDim.x) {
      const F* const of_channel = columns + i % V * op.tiles.tile_columns * lanes + i / V;
      F sum = 0;
#pragma unroll 4
      for (int slot = 0; slot < op.tiles.tile_columns; ++slot) sum += of_channel[slot * lanes];
      out[int64_t{tap} * op.channels + i] = sum;
    }
  }
}

template <class T, int K>
DepthwiseTiles tiles_of(const DepthwiseShape& shape) {
  return DepthwiseTiles(shape, K, kPack<T, K>, kPack<T, K> * sizeof(T), kMostRows);
}

int64_t runs_of(const DepthwiseTiles& tiles) {
  return std::min(tiles.count, ceil_divide(kMostBlocks, tiles.chunks));
}

template <class T, int K>
void launch(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  const DepthwiseTiles tiles = tiles_of<T, K>(op.shape);
  const int64_t runs = runs_of(tiles);
  const SameWeightGrad<T> job{static_cast<const T*>(op.x),
                              static_cast<const T*>(op.grad),
                              static_cast<Compute<T>*>(op.sums),
                              static_cast<int>(op.shape.channels),
                              static_cast<int>(runs),
                              tiles};
  const int64_t columns = int64_t{tiles.tile_columns} * tiles.lanes * kPack<T, K>;
  const int64_t bytes =
      std::max<int64_t>(tiles.source_bytes() + tiles.tile_bytes() + tiles.place_bytes(),
                        columns * static_cast<int64_t>(sizeof(Compute<T>)));
  if (allow_shared(&depthwise_weight_grad_same<T, K>, bytes) != cudaSuccess) return;
  FASTSEG_LAUNCH((depthwise_weight_grad_same<T, K>), static_cast<unsigned>(runs * tiles.chunks),
                 tiles.threads(), bytes, stream, job);
}

// body(T{}, std::integral_constant<int, K>{}) where these kernels take the op.
template <class Body>
void with_packs(const DepthwiseWeightGrad& op, const Body& body) {
  with_square(op.shape, [&](auto zero, auto kernel) {
    const void* tensors[] = {op.x, op.grad};
    const bool takes = takes_packs<decltype(zero), kernel>(op.shape, tensors);
    if (takes) body(zero, kernel);
    return takes;
  });
}

}  // namespace

int64_t depthwise_weight_grad_channels_last_runs(const DepthwiseWeightGrad& op) {
  int64_t runs = 0;
  with_packs(op, [&](auto zero, auto kernel) {
    runs = runs_of(tiles_of<decltype(zero), kernel>(op.shape));
  });
  return runs;
}

void depthwise_weight_grad_channels_last(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  with_packs(op, [&](auto zero, auto kernel) { launch<decltype(zero), kernel>(op, stream); });
}

}  // namespace fastseg::cuda
