// out[index] = value, the last in raster order where indices repeat, and the gradient of that.
//
// Threads that race for an element would make the result depend on the machine. So each window
// first bids for its element with its position in raster order, atomicMax keeps the last, and each
// element then fetches its winner's value: deterministic, and as torch's CPU.
//
// Bytes for each window of a 2x2 pooling in float32: 16 to clear the bids, 8 for the index, 4 for
// the bid, then 16 + 4 in and 16 out; by codes it is 5 in and 16 out (max_unpool2d.cu).

#include "cuda/bits.h"
#include "cuda/launch.h"
#include "cuda/pool/max_unpool2d_indices.h"
#include "cuda/row_tiles.h"

namespace fastseg::cuda {
namespace {

struct Planes {
  FastDivisor lanes;
  int plane;   // H * W
  int row;     // lanes * W of the tensor that the tiles cut
  int height;  // its H
};

// Streaming: an index is read once.
__device__ inline int64_t read_index(const int64_t* indices, int64_t offset) {
  return __ldcs(reinterpret_cast<const long long*>(indices) + offset);
}

// The offset of `index` in the channel of the plane.
__device__ inline int64_t element(const Planes& planes, int plane, int64_t index, int lane) {
  return (int64_t{plane} * planes.plane + index) * planes.lanes + lane;
}

// A thread bids for one window: its position in the plane, counted from 1.
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_bid(const int64_t* indices, int* winners, Planes planes, RowTiles tiles) {
  const int id = blockIdx.x * kThreads + threadIdx.x;
  if (id >= tiles.count) return;
  const Tile tile = tiles[id];
  const int64_t row = int64_t{tile.plane} * planes.height + tile.row;
  const int64_t index = read_index(indices, row * planes.row + tile.column);
  FASTSEG_DEVICE_CHECK(index >= 0 && index < planes.plane,
                       "fastseg::max_unpool2d: a flat index lies outside its plane");
  const int j = tile.column / planes.lanes, lane = tile.column - j * planes.lanes;
  const int position = tile.row * (planes.row / planes.lanes) + j;
  atomicMax(winners + element(planes, tile.plane, index, lane), position + 1);
}

// A thread makes one element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_fetch(const T* values, const int* winners, T* out, int pooled_plane, Planes planes,
                       RowTiles tiles) {
  const int id = blockIdx.x * kThreads + threadIdx.x;
  if (id >= tiles.count) return;
  const Tile tile = tiles[id];
  const int64_t offset =
      (int64_t{tile.plane} * planes.height + tile.row) * planes.row + tile.column;
  const int winner = __ldcs(winners + offset);
  const int lane = tile.column % planes.lanes;
  const int64_t window = int64_t{tile.plane} * pooled_plane + winner - 1;
  out[offset] = winner > 0 ? values[window * planes.lanes + lane] : T{0};
}

// A thread makes one window's gradient.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_indices_pick(const T* grad, const int64_t* indices, T* out, Planes planes,
                              RowTiles tiles) {
  const int id = blockIdx.x * kThreads + threadIdx.x;
  if (id >= tiles.count) return;
  const Tile tile = tiles[id];
  const int64_t offset =
      (int64_t{tile.plane} * planes.height + tile.row) * planes.row + tile.column;
  const int64_t index = read_index(indices, offset);
  FASTSEG_DEVICE_CHECK(index >= 0 && index < planes.plane,
                       "fastseg::max_unpool2d_backward: a flat index lies outside its plane");
  out[offset] = grad[element(planes, tile.plane, index, tile.column % planes.lanes)];
}

// The tiles cut the rows of a tensor of `height` x `width`.
Planes planes_of(const MaxUnpool2dIndices& op, int64_t height, int64_t width) {
  return {FastDivisor(op.lanes), static_cast<int>(op.height * op.width),
          static_cast<int>(width * op.lanes), static_cast<int>(height)};
}

}  // namespace

cudaError_t max_unpool2d_indices(const MaxUnpool2dIndices& op, int* winners, cudaStream_t stream) {
  const int64_t elements = op.planes * op.height * op.width * op.lanes;
  const cudaError_t error = cudaMemsetAsync(winners, 0, elements * sizeof(int), stream);
  if (error != cudaSuccess) return error;
  const Planes pooled = planes_of(op, op.pooled_height, op.pooled_width);
  launch_row_tiles(op.planes, op.pooled_height, op.pooled_width * op.lanes,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH(max_unpool2d_bid, blocks, kThreads, 0, stream, op.indices,
                                    winners, pooled, tiles);
                   });
  const Planes whole = planes_of(op, op.height, op.width);
  const int pooled_plane = static_cast<int>(op.pooled_height * op.pooled_width);
  dispatch_bits(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_row_tiles(op.planes, op.height, op.width * op.lanes,
                     [&](const RowTiles& tiles, unsigned blocks) {
                       FASTSEG_LAUNCH((max_unpool2d_fetch<T>), blocks, kThreads, 0, stream,
                                      static_cast<const T*>(op.values), winners,
                                      static_cast<T*>(op.out), pooled_plane, whole, tiles);
                     });
  });
  return cudaGetLastError();
}

cudaError_t max_unpool2d_indices_backward(const MaxUnpool2dIndices& op, cudaStream_t stream) {
  const Planes pooled = planes_of(op, op.pooled_height, op.pooled_width);
  dispatch_bits(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_row_tiles(op.planes, op.pooled_height, op.pooled_width * op.lanes,
                     [&](const RowTiles& tiles, unsigned blocks) {
                       FASTSEG_LAUNCH((max_unpool2d_indices_pick<T>), blocks, kThreads, 0, stream,
                                      static_cast<const T*>(op.values), op.indices,
                                      static_cast<T*>(op.out), pooled, tiles);
                     });
  });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
