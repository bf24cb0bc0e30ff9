// The filter of an image by rows of simplices, in tasks: bilateral_filter.h.
//
// 1. Tile by tile, the range of the points' quotients, which says how vertices are packed into
// keys.
// 2. Tile by tile: simplices of points, numbered by a small table; the values' sums for each.
// 3. The simplices' vertices, numbered by one table; the sums of simplices added up; the blur.
// 4. Tile by tile: vertices gathered into the rows of simplices; their products with the weights.
//
// Floor: 4 d bytes of features in and 4 (d + 2) out for each point, the same in again, and one
// look-up of its simplex. 3 is for as many simplices as there are, a tenth to a third of the points
// of a photo.

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/crf/permutohedral_features.h"
#include "cpu/crf/bilateral_filter.h"
#include "cpu/crf/permutohedral_blur.h"
#include "cpu/crf/permutohedral_keys.h"
#include "cpu/crf/permutohedral_simplex.h"
#include "cpu/memory/buffer.h"

namespace fastseg::cpu {
namespace {

// Large tiles share more of their simplices, small ones occupy more threads.
constexpr int64_t kTilePoints = 16384;

// Entries of a tile's table and vertices that an image's table begins with: more than a photo has,
// so that one look-up in a few alone meets another key first.
constexpr size_t kSimplexEntries = 16384;
constexpr int64_t kVertices = 16384;

// Memory that grows where more is wanted, and then holds anything.
template <class T>
class Room {
 public:
  T* get(int64_t size) {
    if (size > size_) data_ = Buffer<T>(size_ = size + size / 4);
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  Buffer<T> data_;
  int64_t size_ = 0;
};

// A simplex: the key of its vertex 0, and the rank of coordinate j < d in bits 4 j.
template <class Key>
struct Simplex {
  Key key;
  uint32_t order;
};

// Distinct simplices, numbered in the order of their first appearance.
template <class Key>
class SimplexNumbers {
 public:
  void reset() {
    simplices_.clear();
    entries_.assign(kSimplexEntries, Entry{Key{}, 0, kNone});
    mask_ = kSimplexEntries - 1;
  }

  int32_t find_or_add(Key key, uint32_t order) {
    Entry& entry = find(key, order);
    return entry.number != kNone ? entry.number : add(entry, key, order);
  }

  const LargeVector<Simplex<Key>>& simplices() const { return simplices_; }

 private:
  static constexpr int32_t kNone = -1;
  struct Entry {
    Key key;
    uint32_t order;
    int32_t number;  // or kNone
  };

  Entry& find(Key key, uint32_t order) {
    size_t at = hash(hash(key) + order) >> 20 & mask_;
    while (entries_[at].number != kNone &&
           !(entries_[at].key == key && entries_[at].order == order)) {
      at = (at + 1) & mask_;
    }
    return entries_[at];
  }
  [[gnu::noinline]] int32_t add(Entry& entry, Key key, uint32_t order) {
    const int32_t number = static_cast<int32_t>(simplices_.size());
    entry = {key, order, number};
    simplices_.push_back({key, order});
    if (2 * simplices_.size() > entries_.size()) grow();
    return number;
  }
  void grow() {
    mask_ = 4 * entries_.size() - 1;
    entries_.assign(mask_ + 1, Entry{Key{}, 0, kNone});
    for (size_t i = 0; i < simplices_.size(); ++i) {
      const auto [key, order] = simplices_[i];
      find(key, order) = {key, order, static_cast<int32_t>(i)};
    }
  }

  LargeVector<Simplex<Key>> simplices_;
  LargeVector<Entry> entries_;
  size_t mask_ = 0;
};

// What is kept of a tile and of an image, from one step to another and from image to image.
template <class T, class Key>
struct TileMemory {
  SimplexNumbers<Key> numbers;
  Room<int32_t> simplices;  // of points
  Room<T> barycentric;
  Room<T> rows;            // of simplices
  Room<int32_t> vertices;  // of simplices

  int64_t count() const { return static_cast<int64_t>(numbers.simplices().size()); }
};

template <class T, class Key>
struct ImageMemory {
  std::vector<TileMemory<T, Key>> tiles;
  KeyNumbers<Key> vertices;
  Room<int32_t> neighbors;
  Room<T> buffers;
};

template <class T>
class Filtering {
 public:
  Filtering(const SimplexFilter<T>& filter, const TaskRunner& tasks, const char* name)
      : in_(filter), tasks_(tasks), name_(name), axes_(filter.d + 1) {
    permutohedral::feature_scales(in_.d, in_.refine, scale_);
    tiles_ = (in_.points + kTilePoints - 1) / kTilePoints;
    tile_points_ = permutohedral::tile_points(in_.points, tiles_);
    tiles_ = (in_.points + tile_points_ - 1) / tile_points_;
  }

  // Whether keys are wide.
  bool find_layout() {
    if (in_.points >= (int64_t{1} << 31) / axes_) {
      throw std::runtime_error(std::string("fastseg::") + name_ +
                               ": features must have fewer than 2^31 / (d + 1) points, got " +
                               std::to_string(in_.points));
    }
    std::vector<QuotientRange> ranges(tiles_);
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, quotient_range<T>);
    tasks_.run(tiles_, [&](int64_t t) { ranges[t] = kernel(points_of(t)); });
    for (int64_t t = 0; t < tiles_; ++t) {
      if (!ranges[t].bad) continue;
      const SimplexPoints<T> p = points_of(t);
      permutohedral::refuse_features(std::string("fastseg::") + name_, p.features, p.d, p.points,
                                     p.plane_stride);
    }
    layout_ = key_layout(in_.d, ranges.data(), tiles_, /*steps=*/1, name_);
    return layout_.bits > 64;
  }

  template <class Key>
  void run(ImageMemory<T, Key>& memory) const {
    if (static_cast<int64_t>(memory.tiles.size()) < tiles_) memory.tiles.resize(tiles_);
    tasks_.run(tiles_, [&](int64_t t) { splat(t, memory.tiles[t]); });
    const KeySteps<Key> steps(layout_);
    number_vertices(memory, steps);
    const int64_t count = static_cast<int64_t>(memory.vertices.keys().size());
    const int64_t stride = row_stride(in_.channels), size = (count + 1) * stride;
    T* rows = memory.buffers.get(size * (1 + blur_buffers(in_.blur)));
    std::fill_n(rows, size, T{0});
    const auto add_up = FASTSEG_SIMD_DISPATCH_OF(T, add_simplices<T>);
    for (int64_t t = 0; t < tiles_; ++t) {
      const TileMemory<T, Key>& tile = memory.tiles[t];
      add_up(simplices_of(tile), tile.rows.get(), rows);
    }
    const T* blurred = blur(memory, steps, stride, rows);
    tasks_.run(tiles_, [&](int64_t t) { slice(t, memory.tiles[t], blurred); });
  }

 private:
  SimplexPoints<T> points_of(int64_t t) const {
    const int64_t begin = t * tile_points_;
    return {in_.d, std::min(tile_points_, in_.points - begin), in_.features + begin, in_.points,
            scale_};
  }
  int64_t row_size() const { return in_.channels * simplex_lanes(axes_); }

  template <class Key>
  void splat(int64_t t, TileMemory<T, Key>& tile) const {
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, simplices<T>);
    const int64_t points = points_of(t).points, slack = simplex_lanes(axes_);
    int32_t* numbers = tile.simplices.get(points);
    T* barycentric = tile.barycentric.get(points * axes_ + slack);
    std::fill_n(barycentric + points * axes_, slack, T{0});
    tile.numbers.reset();
    Simplices<T> found;
    SimplexPoints<T> block = points_of(t);
    for (int64_t begin = 0; begin < points; begin += kSimplexBlock) {
      block.points = std::min(kSimplexBlock, points - begin);
      found.barycentric = barycentric + begin * axes_;
      kernel(block, layout_, found);
      number(found, block.points, tile.numbers, numbers + begin);
      block.features += block.points;
    }
    if (t == tiles_ - 1 && permutohedral::origin_pads(in_.points, /*dilation=*/0)) {
      const T origin[permutohedral::kMaxDimensions] = {};
      T unused_weights[permutohedral::kMaxDimensions + 1];
      int32_t unused_number;
      found.barycentric = unused_weights;
      kernel({in_.d, 1, origin, 1, scale_}, layout_, found);
      number(found, 1, tile.numbers, &unused_number);
    }
    const int64_t size = tile.count() * row_size();
    T* rows = tile.rows.get(size);
    std::fill_n(rows, size, T{0});
    FASTSEG_SIMD_DISPATCH_OF(T, splat_to_simplices<T>)
    (view(t, tile), in_.values + t * tile_points_, rows);
  }

  template <class Key>
  static void number(const Simplices<T>& found, int64_t points, SimplexNumbers<Key>& numbers,
                     int32_t* out) {
    const Key* keys = found.keys_as(Key{});
    for (int64_t i = 0; i < points; ++i) {
      out[i] = numbers.find_or_add(keys[i], found.orders[i]);
    }
  }

  template <class Key>
  SimplexTile<T> view(int64_t t, const TileMemory<T, Key>& tile) const {
    return {axes_,      points_of(t).points,  in_.channels,
            in_.points, tile.simplices.get(), tile.barycentric.get()};
  }

  template <class Key>
  SimplexRows simplices_of(const TileMemory<T, Key>& tile) const {
    return {axes_, tile.count(), in_.channels, tile.vertices.get()};
  }

  template <class Key>
  void number_vertices(ImageMemory<T, Key>& memory, const KeySteps<Key>& steps) const {
    KeyNumbers<Key>& vertices = memory.vertices;
    vertices.reset(kVertices);
    for (int64_t t = 0; t < tiles_; ++t) {
      TileMemory<T, Key>& tile = memory.tiles[t];
      int32_t* out = tile.vertices.get(tile.count() * axes_);
      for (auto [key, order] : tile.numbers.simplices()) {
        Key unit_of_rank[16] = {};
        for (int j = 0; j < in_.d; ++j) unit_of_rank[order >> (4 * j) & 15] = steps.unit(j);
        *out++ = vertices.find_or_add(key);
        for (int r = 1; r <= in_.d; ++r) {  // the coordinate of the next highest rank steps down
          key += 1 - unit_of_rank[in_.d - r + 1];
          *out++ = vertices.find_or_add(key);
        }
      }
    }
  }

  template <class Key>
  const T* blur(ImageMemory<T, Key>& memory, const KeySteps<Key>& steps, int64_t stride,
                T* values) const {
    const KeyNumbers<Key>& vertices = memory.vertices;
    const int64_t count = static_cast<int64_t>(vertices.keys().size()), size = (count + 1) * stride;
    int32_t* neighbors = memory.neighbors.get(2 * axes_ * count);
    std::fill_n(neighbors, 2 * axes_ * count, static_cast<int32_t>(count));
    for (int axis = 0; axis < axes_; ++axis) {
      int32_t* back = neighbors + 2 * axis * count;
      for (int64_t v = 0; v < count; ++v) {
        const int32_t found = vertices.find(steps.forward(vertices.keys()[v], axis));
        if (found == KeyTable::kNone) continue;
        back[count + v] = found, back[found] = static_cast<int32_t>(v);
      }
    }
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, blur_rows<T>);
    for (int i = 1; i <= blur_buffers(in_.blur); ++i) {
      std::fill_n(values + i * size + count * stride, stride, T{0});
    }
    return blur_steps(
        in_.blur, static_cast<int>(axes_), values, values + size, values + 2 * size,
        [&](int axis, const T* from, const T* mean_with, T* to) {
          const int32_t* back = neighbors + 2 * axis * count;
          kernel({back, back + count, stride, static_cast<T>(in_.blur.side), from, mean_with, to},
                 0, count);
        });
  }

  template <class Key>
  void slice(int64_t t, TileMemory<T, Key>& tile, const T* blurred) const {
    FASTSEG_SIMD_DISPATCH_OF(T, gather_simplices<T>)(simplices_of(tile), blurred, tile.rows.get());
    FASTSEG_SIMD_DISPATCH_OF(T, slice_simplices<T>)
    (view(t, tile), tile.rows.get(), in_.gain, in_.out + t * tile_points_);
  }

  const SimplexFilter<T>& in_;
  const TaskRunner& tasks_;
  const char* name_;
  int64_t axes_;  // d + 1, as many as a simplex has vertices
  T scale_[permutohedral::kMaxDimensions];
  int64_t tiles_, tile_points_;
  KeyLayout layout_;
};

}  // namespace

template <class T>
struct SimplexFilterer<T>::Memory {
  ImageMemory<T, uint64_t> narrow;
  ImageMemory<T, WideKey> wide;
};

template <class T>
SimplexFilterer<T>::SimplexFilterer() : memory_(std::make_unique<Memory>()) {}
template <class T>
SimplexFilterer<T>::~SimplexFilterer() = default;

template <class T>
void SimplexFilterer<T>::run(const SimplexFilter<T>& filter, const TaskRunner& tasks,
                             const char* name) {
  if (filter.points == 0 || filter.channels == 0) return;
  Filtering<T> filtering(filter, tasks, name);
  filtering.find_layout() ? filtering.run(memory_->wide) : filtering.run(memory_->narrow);
}

template class SimplexFilterer<float>;
template class SimplexFilterer<double>;

}  // namespace fastseg::cpu
