#pragma once
// The permutohedral lattice of a batch of images on the CPU, without torch: the format that
// fastseg/_core/permutohedral.py describes, and its construction.

#include <cstdint>
#include <functional>
#include <vector>

#include "common/crf/permutohedral.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// A lattice of `batch` images of `points` points each. Memory belongs to somebody else.
template <class T>
struct LatticeView {
  int d = 0;
  int64_t batch = 0, points = 0;
  int64_t tiles = 0;                       // of all images; each image has as many
  int64_t rows = 0;                        // of all tiles: local copies of vertices
  int64_t vertices = 0;                    // of all images
  const int32_t* slots = nullptr;          // (batch, points, d + 1): the row within the tile
  const T* barycentric = nullptr;          // (batch, points, d + 1)
  const int32_t* tile_starts = nullptr;    // (tiles + 1): a tile's rows
  const int32_t* tile_vertices = nullptr;  // (rows): the vertex of each row
  const int32_t* vertex_rows = nullptr;    // (rows): rows sorted by vertex, then ascending
  const int32_t* vertex_starts = nullptr;  // (vertices + 1): a vertex's part of vertex_rows
  const int32_t* neighbors = nullptr;      // (d + 1, 2, vertices): one step back, one forward;
                                           // `vertices`, the row of zeros, where there is none

  int64_t tiles_per_image() const { return batch ? tiles / batch : 0; }
  int64_t tile_points() const { return permutohedral::tile_points(points, tiles_per_image()); }

  struct Tile {
    int64_t image;
    int64_t begin, end;  // its points, within the image
  };
  Tile tile(int64_t t) const {
    const int64_t size = tile_points(), k = t % tiles_per_image();
    const int64_t end = (k + 1) * size;
    return {t / tiles_per_image(), k * size, end < points ? end : points};
  }
  const int32_t* back(int axis) const { return neighbors + 2 * axis * vertices; }
  const int32_t* forward(int axis) const { return back(axis) + vertices; }
};

template <class T>
struct LatticeInput {
  const T* features = nullptr;  // image b, dimension j, point i at b * image_stride +
                                // j * plane_stride + i
  int64_t batch = 0, points = 0;
  int d = 0;
  int64_t image_stride = 0, plane_stride = 0;
  double refine = 1;  // the features' multiplier
  int dilation = 0;  // 0: none; 1: all neighbours of vertices; 2: only those that join two vertices
};

enum class LatticeArray {
  slots,
  barycentric,
  tile_starts,
  tile_vertices,
  vertex_rows,
  vertex_starts,
  neighbors,
};

// Memory for an array of that many elements (int32, barycentric T), aligned to at least 16 bytes.
// Asked once for each array, by the calling thread.
using LatticeAllocator = std::function<void*(LatticeArray, int64_t elements)>;

// Builds a lattice in the allocator's memory. vertex_count (batch): the vertices of each image that
// points touch (and the origin's, see common/crf/permutohedral.h), before dilation.
//
// Throws std::runtime_error for features that are NaN, infinite or too large, for keys beyond 128
// bits and for 2^31 entries or more; messages begin with `name`.
template <class T>
LatticeView<T> build_lattice(const LatticeInput<T>& input, const TaskRunner& tasks,
                             const LatticeAllocator& allocate, int64_t* vertex_count,
                             const char* name = "permutohedral_lattice");

// A lattice that owns its memory.
template <class T>
class Lattice {
 public:
  Lattice() = default;
  Lattice(const LatticeInput<T>& input, const TaskRunner& tasks,
          const char* name = "permutohedral_lattice")
      : vertex_count(input.batch), arrays_(static_cast<int>(LatticeArray::neighbors) + 1) {
    const auto allocate = [this](LatticeArray array, int64_t elements) {
      const size_t size = array == LatticeArray::barycentric ? sizeof(T) : sizeof(int32_t);
      Buffer<std::byte>& memory = arrays_[static_cast<int>(array)];
      memory = Buffer<std::byte>(elements * size);
      return static_cast<void*>(memory.get());
    };
    view_ = build_lattice(input, tasks, allocate, vertex_count.data(), name);
  }

  const LatticeView<T>& view() const { return view_; }

  // Gives the memory of an array back, which the view must not be asked for afterwards.
  void release(LatticeArray array) { arrays_[static_cast<int>(array)] = {}; }

  std::vector<int64_t> vertex_count;  // of each image, as in build_lattice

 private:
  LatticeView<T> view_;
  std::vector<Buffer<std::byte>> arrays_;  // of the view, by LatticeArray
};

}  // namespace fastseg::cpu
