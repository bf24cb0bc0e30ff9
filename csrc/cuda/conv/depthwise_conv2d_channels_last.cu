// y = act(conv(x) * scale + shift + residual) for channels_last images whose size is kept.
//
// A thread walks down a column of its tile. A row of x enters once for all K rows of outputs that
// read it, whose sums are in registers, as are the weights: K loads from shared memory and K * K
// multiply-adds for each output and channel.
//
// Floor: x and the residual read, y written. 65 x 65 x 2048 in bfloat16: 35 MB, 8 us at 4.3 TB/s,
// and 2.4 million warp instructions of multiply-adds, 2.6 us.

#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_tile.h"
#include "cuda/conv/depthwise_weights.h"
#include "cuda/conv/rolling_rows.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int64_t kMostRows = 16;

template <class T>
struct SameConv2d : DepthwiseTensors<T> {
  bool mirrored;
  int channels;
  DepthwiseTiles tiles;
};

template <class T, int K, bool kPlain>
__global__ void __launch_bounds__(kMostTileThreads, 2) depthwise_conv2d_same(SameConv2d<T> op) {
  constexpr int V = kPack<T, K>, R = K / 2;
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  T* const cells = reinterpret_cast<T*>(shared);
  const int tile = static_cast<int>(blockIdx.x) / op.tiles.chunks;
  T* const zeros = reinterpret_cast<T*>(shared + op.tiles.source_bytes());  // a vector of them
  DepthwiseTile<T, K> at(op.tiles, static_cast<int>(blockIdx.x) - tile * op.tiles.chunks,
                         op.channels, reinterpret_cast<TilePlace*>(zeros + kVector<T>));
  if (threadIdx.x < kVector<T>) zeros[threadIdx.x] = from_compute<T>(0);
  at.move_to(tile, op.mirrored);
  at.stage_sources(op.x, cells);
  const TilePlace column = at.columns[at.works ? at.slot + R : 0];
  const bool exists = at.works && column.coordinate >= 0;
  PackWeights<T, K, V> weights;
  if (exists) weights.load(op.weight, op.vectors, at.channel, /*flip=*/false);
  wait_for_copies();
  __syncthreads();
  if (!exists) return;

  // Where in shared memory each tap's column begins, and how far a row is from the next: padding
  // has one row, of zeros.
  int sources[K], steps[K];
#pragma unroll
  for (int b = 0; b < K; ++b) {
    const bool lives = column.sources >> b & 1;
    sources[b] = lives ? at.source_cell(0, b) : static_cast<int>(zeros - cells);
    steps[b] = lives ? op.tiles.cell_columns * op.tiles.lanes * V : 0;
  }
  // The sum of output t + R - a, which reads row t as its tap a, is sums[(t - a) % K].
  F sums[K][V];
#pragma unroll
  for (int a = 0; a < K; ++a) weights.begin(sums[a]);
  const int source_rows = op.tiles.source_rows();
  const int64_t own = at.element(0, column.coordinate);
  for (int first = 0; first < source_rows; first += kSteps<K>) {
#pragma unroll
    for (int u = 0; u < kSteps<K>; ++u) {
      const int t = first + u;
      if (t >= source_rows) break;
      const unsigned readers = at.rows[t].readers;
      if (readers != 0) {
        F x[K][V];
#pragma unroll
        for (int b = 0; b < K; ++b) {
          widen(load_pack<V>(cells + sources[b]), x[b]);
          keep(x[b]);
        }
#pragma unroll
        for (int a = 0; a < K; ++a) {
          if (!(readers >> a & 1)) continue;
#pragma unroll
          for (int b = 0; b < K; ++b) weights.add(x[b], a * K + b, sums[(u - a + K) % K]);
        }
      }
#pragma unroll
      for (int b = 0; b < K; ++b) sources[b] += steps[b];
      F(&sum)[V] = sums[(u + 1) % K];  // of the output that reads row t last
      const int row = t < K - 1 ? -1 : at.rows[t - R].coordinate;
      if (row >= 0) {
        const int64_t to = own + row * at.pitch();
        if (!kPlain && op.residual != nullptr) {
          F more[V];
          widen(load_pack<V>(op.residual + to), more);
#pragma unroll
          for (int k = 0; k < V; ++k) sum[k] += more[k];
        }
        activate<kPlain>(op.activation, sum);
        store_pack(op.y + to, narrow<T>(sum));
      }
      weights.begin(sum);
      roll(sums);
    }
  }
}

template <class T, int K>
void launch(const DepthwiseConv2d& op, cudaStream_t stream) {
  const DepthwiseTiles tiles(op.shape, K, kPack<T, K>, kPack<T, K> * sizeof(T), kMostRows);
  const SameConv2d<T> job{DepthwiseTensors<T>(op), op.transposed,
                          static_cast<int>(op.shape.channels), tiles};
  const auto blocks = static_cast<unsigned>(tiles.count * tiles.chunks);
  const int bytes = tiles.source_bytes() + tiles.place_bytes();
  with_plain<K>(op.activation, op.residual, [&](auto plain) {
    constexpr auto kernel = &depthwise_conv2d_same<T, K, plain>;
    if (allow_shared(kernel, bytes) != cudaSuccess) return;
    FASTSEG_LAUNCH(kernel, blocks, tiles.threads(), bytes, stream, job);
  });
}

}  // namespace

bool depthwise_conv2d_channels_last(const DepthwiseConv2d& op, cudaStream_t stream) {
  return with_square(op.shape, [&](auto zero, auto kernel) {
    const void* tensors[] = {op.x, op.weight, op.residual, op.y};
    if (!takes_packs<decltype(zero), kernel>(op.shape, tensors)) return false;
    launch<decltype(zero), kernel>(op, stream);
    return true;
  });
}

}  // namespace fastseg::cuda
