#pragma once
// How channels_last images are cut into the blocks of kernels that keep their size. A block takes a
// tile of positions (phase_order.h) and a chunk of channels, in packs of kPack; a thread takes a
// column of the tile and a pack. What its taps read, the tile and its margins, is in shared memory.

#include <algorithm>

#include "common/ceil_divide.h"
#include "cuda/async_copy.h"
#include "cuda/conv/depthwise_conv2d.h"
#include "cuda/conv/phase_order.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

// Channels of a thread, for a kernel of K x K: as many as leave room for their weights in
// registers.
template <class T, int K>
inline constexpr int kPack = K == 3 ? 16 / sizeof(T) : 2;

inline constexpr int kMostTileThreads = 192;
inline constexpr int64_t kChunkBytes = 128;      // of a pixel's channels in a block, at most
inline constexpr int64_t kTileBytes = 47 << 10;  // of x in a block: two are resident everywhere
inline constexpr int64_t kTileChoices = 24;      // of numbers of tiles; more make these too narrow
inline constexpr int64_t kFewestBlocks = 264;    // two for each multiprocessor of a large GPU

// The parts of equal size, `most` at most, that `total` is cut into.
inline int64_t even_part(int64_t total, int64_t most) {
  return ceil_divide(total, ceil_divide(total, most));
}

// A position of a tile or of its margins: its coordinate, -1 where no output of the tile reads it;
// as sets of bits, the taps as which the tile's positions read it, and the taps that it reads.
struct TilePlace {
  int coordinate;
  unsigned readers, sources;
};

struct DepthwiseTiles {
  PhaseOrder rows, columns;
  int tile_rows, tile_columns;
  FastDivisor lanes;  // packs of channels in a block
  FastDivisor chunks, column_tiles, row_tiles;
  FastDivisor cell_columns;  // of a tile with its margins
  int64_t count;             // of all images
  int pack_bytes;

  DepthwiseTiles(const DepthwiseShape& shape, int kernel, int pack, int bytes, int64_t most_rows)
      : rows(shape.rows.size, shape.rows.dilation),
        columns(shape.columns.size, shape.columns.dilation),
        pack_bytes(bytes) {
    const int64_t packs = shape.channels / pack;
    const int64_t in_block = even_part(packs, kChunkBytes / bytes);
    lanes = FastDivisor(in_block);
    chunks = FastDivisor(ceil_divide(packs, in_block));
    tile_columns = static_cast<int>(best_columns(shape.columns.size, in_block, kernel));
    column_tiles = FastDivisor(ceil_divide(shape.columns.size, tile_columns));
    const int64_t beside = shape.images * column_tiles * chunks;
    const int64_t row_bytes = (tile_columns + kernel - 1) * in_block * bytes;
    most_rows = std::min(most_rows, kTileBytes / row_bytes - kernel + 1);
    int64_t height = even_part(shape.rows.size, std::max<int64_t>(most_rows, 1));
    while (height > 2 && beside * ceil_divide(shape.rows.size, height) < kFewestBlocks) {
      height = (height + 1) / 2;
    }
    tile_rows = static_cast<int>(height);
    row_tiles = FastDivisor(ceil_divide(shape.rows.size, height));
    cell_columns = FastDivisor(tile_columns + kernel - 1);
    count = shape.images * row_tiles * column_tiles;
    margin_ = kernel - 1;
  }

  int threads() const {
    return static_cast<int>(ceil_divide(int64_t{tile_columns} * lanes, 32) * 32);
  }
  FASTSEG_HOST_DEVICE int source_rows() const { return tile_rows + margin_; }
  // Of the tile with its margins, of the tile alone, and of what a block knows of both axes.
  FASTSEG_HOST_DEVICE int source_bytes() const {
    return source_rows() * cell_columns * lanes * pack_bytes;
  }
  FASTSEG_HOST_DEVICE int tile_bytes() const {
    return tile_rows * tile_columns * lanes * pack_bytes;
  }
  int place_bytes() const {
    return kVectorBytes + (source_rows() + cell_columns) * static_cast<int>(sizeof(TilePlace));
  }

 private:
  // The columns of a tile whose threads have the most to do, and read the least twice.
  static int64_t best_columns(int64_t width, int64_t in_block, int64_t kernel) {
    int64_t best = 1;
    double best_score = 0;
    const int64_t fewest = ceil_divide(width, kMostTileThreads / in_block);
    for (int64_t tiles = fewest; tiles < fewest + kTileChoices && tiles <= width; ++tiles) {
      const int64_t columns = ceil_divide(width, tiles);
      const int64_t threads =
          ceil_divide(width, columns) * ceil_divide(columns * in_block, 32) * 32;
      const double busy = static_cast<double>(width * in_block) / threads;
      const double score = busy / (1 + (kernel - 1) / (4.0 * columns));
      if (score > best_score) best = columns, best_score = score;
    }
    return best;
  }

  int margin_ = 0;
};

// Source t of a tile of `count` positions that begins at `first`, K / 2 of which lie ahead of it.
// Mirrored: coordinates count from the end, so that taps are taken in reverse order.
template <int K>
__device__ inline TilePlace tile_place(const PhaseOrder& order, int first, int count, int t,
                                       bool mirrored) {
  constexpr int R = K / 2;
  const int position = first - R + t;
  if (position < 0 || position >= order.size()) return {-1, 0, 0};
  const PhasePlace place = order[position];
  if (R - t > place.after || t - (R + count - 1) > place.before) return {-1, 0, 0};
  TilePlace out{mirrored ? order.size() - 1 - place.coordinate : place.coordinate, 0, 0};
  for (int tap = 0; tap < K; ++tap) {
    const int distance = tap < R ? R - tap : tap - R;
    const int reader = t - tap;  // of the tile's positions
    const bool in_phase = distance <= (tap < R ? place.after : place.before);
    if (in_phase && reader >= 0 && reader < count) out.readers |= 1u << tap;
    if (distance <= (tap < R ? place.before : place.after)) out.sources |= 1u << tap;
  }
  return out;
}

// A thread's part of a tile: the column `slot` of it, and a pack of channels.
template <class T, int K>
struct DepthwiseTile {
  static constexpr int V = kPack<T, K>, kBytes = V * static_cast<int>(sizeof(T));

  const DepthwiseTiles& tiles;
  int channels, slot, lane, channel;
  bool works;  // whether there is such a column and such a pack
  TilePlace *rows, *columns;
  int image = 0;

  // `places` has room for source_rows() + cell_columns.
  __device__ DepthwiseTile(const DepthwiseTiles& t, int chunk, int all_channels, TilePlace* places)
      : tiles(t), channels(all_channels), rows(places), columns(places + t.source_rows()) {
    slot = static_cast<int>(threadIdx.x) / t.lanes;
    lane = static_cast<int>(threadIdx.x) - slot * t.lanes;
    channel = (chunk * t.lanes + lane) * V;
    works = slot < t.tile_columns && channel < channels;
  }

  // Goes to a tile. All threads meet here; none may still read the places of the last tile.
  __device__ void move_to(int tile, bool mirrored = false) {
    const int above = tile / tiles.column_tiles, column = tile - above * tiles.column_tiles;
    image = above / tiles.row_tiles;
    const int row = above - image * tiles.row_tiles;
    const int source_rows = tiles.source_rows(), all = source_rows + tiles.cell_columns;
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
      rows[i] = i < source_rows
                    ? tile_place<K>(tiles.rows, row * tiles.tile_rows, tiles.tile_rows, i, mirrored)
                    : tile_place<K>(tiles.columns, column * tiles.tile_columns, tiles.tile_columns,
                                    i - source_rows, mirrored);
    }
    __syncthreads();
  }

  // Begins to copy what the tile's taps read: cells (source_rows, cell_columns, lanes, V).
  __device__ void stage_sources(const T* x, T* cells) const {
    if (!works) return;
    for (int j = slot; j < tiles.cell_columns; j += tiles.tile_columns) {
      const int column = columns[j].coordinate;
      if (column < 0) continue;
      const T* const from = x + element(0, column);
      T* to = cells + (j * tiles.lanes + lane) * V;
      for (int i = 0; i < tiles.source_rows(); ++i, to += tiles.cell_columns * tiles.lanes * V) {
        const int row = rows[i].coordinate;
        if (row >= 0) copy_async<kBytes>(to, from + row * pitch());
      }
    }
  }

  // Begins to copy this thread's column of the tile: cells (tile_rows, tile_columns, lanes, V).
  __device__ void stage_column(const T* from, T* cells) const {
    const int own = works ? columns[slot + K / 2].coordinate : -1;
    if (own < 0) return;
    from += element(0, own);
    for (int i = 0; i < tiles.tile_rows; ++i) {
      const int row = rows[i + K / 2].coordinate;
      if (row >= 0) copy_async<kBytes>(cells + own_cell(i), from + row * pitch());
    }
  }

  __device__ int own_cell(int row) const {
    return ((row * tiles.tile_columns + slot) * tiles.lanes + lane) * V;
  }
  // Of source row t at the thread's tap b.
  __device__ int source_cell(int t, int b) const {
    return ((t * tiles.cell_columns + slot + b) * tiles.lanes + lane) * V;
  }
  // Of the tile's image and the thread's channels. An image's elements are numbered by ints.
  __device__ int64_t element(int row, int column) const {
    return int64_t{image} * tiles.rows.size() * pitch() + (row * pitch() + column * channels) +
           channel;
  }
  // The elements of a row of an image.
  __device__ int pitch() const { return tiles.columns.size() * channels; }
};

// Whether channels and pointers, null or not, let packs be moved as one.
template <class T, int K, int kCount>
bool takes_packs(const DepthwiseShape& shape, const void* const (&tensors)[kCount]) {
  if (!shape.channels_last || shape.channels % kPack<T, K> != 0) return false;
  constexpr int kBytes = kPack<T, K> * static_cast<int>(sizeof(T));
  return std::all_of(tensors, tensors + kCount,
                     [](const void* p) { return is_aligned(p, kBytes); });
}

}  // namespace fastseg::cuda
