// The permutohedral lattice of a batch of images.
//
// 1. The range of every image's quotients, which also finds features that are not finite.
// 2. Tile by tile: simplices; a small table numbers the vertices that the tile touches. Points of a
//    simplex that is remembered need no look-up.
// 3. Image by image: the tiles' keys into one numbering (permutohedral_index.h); dilation.
// 4. The neighbours of each vertex, a look-up for each axis; meanwhile the rows sorted by vertex.
//
// Floor: 4 d bytes in and 8 (d + 1) out for each point, 8 (d + 1) for each vertex; what costs are
// the look-ups: d + 1 for each simplex and tile, d + 1 for each vertex, in tables that outgrow the
// caches where vertices are many.

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/crf/permutohedral_features.h"
#include "cpu/crf/permutohedral_dilation.h"
#include "cpu/crf/permutohedral_index.h"
#include "cpu/crf/permutohedral_keys.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/crf/permutohedral_neighbors.h"
#include "cpu/crf/permutohedral_simplex.h"
#include "cpu/crf/permutohedral_slots.h"
#include "cpu/threads/task_memory.h"

namespace fastseg::cpu {
namespace {

// Large tiles share more of their vertices; threads want some tiles to share, and no tile's rows
// should outgrow a core's own cache by much.
constexpr int64_t kMostTilePoints = 16384, kLeastTilePoints = 4096, kTilesToShare = 12;
constexpr int64_t kVerticesPerTask = 2048;

template <class... Parts>
[[noreturn]] void fail(const char* name, const Parts&... parts) {
  std::ostringstream message;
  message << "fastseg::" << name << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <class T>
class Builder {
 public:
  Builder(const LatticeInput<T>& input, const TaskRunner& tasks, const LatticeAllocator& allocate,
          int64_t* vertex_count, const char* name)
      : in_(input), tasks_(tasks), allocate_(allocate), vertex_count_(vertex_count), name_(name) {
    permutohedral::feature_scales(in_.d, in_.refine, scale_);
    out_.d = in_.d, out_.batch = in_.batch, out_.points = in_.points;
    const auto tiles_of = [&](int64_t size) { return (in_.points + size - 1) / size; };
    const int64_t tiles =
        std::max(tiles_of(kMostTilePoints), std::min(tiles_of(kLeastTilePoints), kTilesToShare));
    const int64_t points = std::max<int64_t>(permutohedral::tile_points(in_.points, tiles), 1);
    out_.tiles = in_.batch * ((in_.points + points - 1) / points);
  }

  LatticeView<T> build() {
    if (in_.points >= (int64_t{1} << 31) / (in_.d + 1)) {
      fail(name_, "features must have fewer than 2^31 / (d + 1) points, got ", in_.points);
    }
    find_layouts();
    const int64_t entries = in_.batch * in_.points * (in_.d + 1);
    slots_ = integers(LatticeArray::slots, entries);
    barycentric_ = static_cast<T*>(allocate_(LatticeArray::barycentric, entries));
    out_.slots = slots_, out_.barycentric = barycentric_;
    const bool wide = std::any_of(layouts_.begin(), layouts_.end(),
                                  [](const KeyLayout& layout) { return layout.bits > 64; });
    wide ? number_vertices<WideKey>() : number_vertices<uint64_t>();
    return out_;
  }

 private:
  int32_t* integers(LatticeArray array, int64_t elements) {
    return static_cast<int32_t*>(allocate_(array, elements));
  }

  SimplexPoints<T> points_of(const typename LatticeView<T>::Tile& tile) const {
    return {in_.d, tile.end - tile.begin, in_.features + tile.image * in_.image_stride + tile.begin,
            in_.plane_stride, scale_};
  }

  void find_layouts() {
    std::vector<QuotientRange> ranges(out_.tiles);
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, quotient_range<T>);
    tasks_.run(out_.tiles, [&](int64_t t) { ranges[t] = kernel(points_of(out_.tile(t))); });
    layouts_.resize(in_.batch);
    for (int64_t t = 0; t < out_.tiles; ++t) {
      if (!ranges[t].bad) continue;
      const SimplexPoints<T> p = points_of(out_.tile(t));
      permutohedral::refuse_features(std::string("fastseg::") + name_, p.features, p.d, p.points,
                                     p.plane_stride);
    }
    const int64_t tiles = out_.tiles_per_image();
    for (int64_t b = 0; b < in_.batch; ++b) {
      const int steps = 1 + (in_.dilation > 0);  // each of a look-up and a ring takes one
      layouts_[b] = key_layout(in_.d, ranges.data() + b * tiles, tiles, steps, name_);
    }
  }

  template <class Key>
  struct Scratch {
    Simplices<T> simplices;
    KeyNumbers<Key> vertices;
  };

  template <class Key>
  void scan_tile(int64_t t, Scratch<Key>& scratch, KeyList<Key>& list) const {
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, simplices<T>);
    const auto tile = out_.tile(t);
    const KeyLayout& layout = layouts_[tile.image];
    const KeySteps<Key> steps(layout);
    SimplexPoints<T> rest = points_of(tile), block = rest;
    int64_t entry = (tile.image * in_.points + tile.begin) * (in_.d + 1);
    scratch.vertices.reset(1024);
    with_dimensions(in_.d, [&]<int D>() {
      TileSlots<D, Key> slots(steps, scratch.vertices);
      const Key* keys = scratch.simplices.keys_as(Key{});
      const uint32_t* orders = scratch.simplices.orders;
      while (rest.points > 0) {
        block = rest;
        block.points = std::min(rest.points, kSimplexBlock);
        scratch.simplices.barycentric = barycentric_ + entry;
        kernel(block, layout, scratch.simplices);
        slots.look_up(block.points, keys, orders, slots_ + entry);
        entry += block.points * (D + 1);
        rest.features += block.points, rest.points -= block.points;
      }
      if (tile.end == in_.points && permutohedral::origin_pads(in_.points, in_.dilation)) {
        const T origin[D] = {};
        T unused_weights[D + 1];
        int32_t unused_slots[D + 1];
        scratch.simplices.barycentric = unused_weights;
        kernel({D, 1, origin, 1, scale_}, layout, scratch.simplices);
        slots.look_up(1, keys, orders, unused_slots);
      }
    });
    list.keys = scratch.vertices.keys();
  }

  template <class Key>
  void number_vertices() {
    // The lists of an image's tiles, for each image.
    std::vector<std::vector<KeyList<Key>>> lists(in_.batch);
    const int64_t tiles = out_.tiles_per_image();
    for (auto& image : lists) image.resize(tiles);
    {
      TaskMemory<Scratch<Key>> memory;
      tasks_.run(out_.tiles, [&](int64_t t) {
        memory.borrow(
            [] { return std::make_unique<Scratch<Key>>(); },
            [&](Scratch<Key>& scratch) { scan_tile(t, scratch, lists[t / tiles][t % tiles]); });
      });
    }
    int32_t* starts = integers(LatticeArray::tile_starts, out_.tiles + 1);
    int64_t rows = starts[0] = 0;
    for (int64_t t = 0; t < out_.tiles; ++t) {
      rows += static_cast<int64_t>(lists[t / tiles][t % tiles].keys.size());
      starts[t + 1] = static_cast<int32_t>(std::min<int64_t>(rows, kMost));
    }
    if (rows >= kMost) fail(name_, "the images' tiles must have fewer than 2^31 vertices in all");
    out_.tile_starts = starts, out_.rows = rows;
    int32_t* tile_vertices = integers(LatticeArray::tile_vertices, rows);
    out_.tile_vertices = tile_vertices;

    std::vector<KeyIndex<Key>> indices(in_.batch);
    first_.assign(1, 0);
    for (int64_t b = 0; b < in_.batch; ++b) {
      const int32_t begin = starts[b * tiles], end = starts[(b + 1) * tiles];
      indices[b].build(lists[b], tile_vertices + begin, tasks_);
      lists[b].clear();
      vertex_count_[b] = static_cast<int64_t>(indices[b].keys().size());
      if (in_.dilation) dilate(indices[b], KeySteps<Key>(layouts_[b]), in_.dilation == 2, tasks_);
      for (int32_t r = begin; first_[b] && r < end; ++r) {
        tile_vertices[r] += static_cast<int32_t>(first_[b]);
      }
      first_.push_back(first_[b] + static_cast<int64_t>(indices[b].keys().size()));
      if (first_.back() >= kMost) fail(name_, "features must have fewer than 2^31 vertices");
    }
    out_.vertices = first_.back();
    connect(indices);
  }

  // Neighbours, and the rows of each vertex.
  template <class Key>
  void connect(const std::vector<KeyIndex<Key>>& indices) {
    const int64_t axes = in_.d + 1;
    int32_t* neighbors = integers(LatticeArray::neighbors, axes * 2 * out_.vertices);
    int32_t* rows = integers(LatticeArray::vertex_rows, out_.rows);
    int32_t* starts = integers(LatticeArray::vertex_starts, out_.vertices + 1);
    out_.neighbors = neighbors, out_.vertex_rows = rows, out_.vertex_starts = starts;
    tasks_.run(axes, [&](int64_t axis) {  // `forward` is written in order, `back` by who comes
      std::fill_n(neighbors + 2 * axis * out_.vertices, out_.vertices,
                  static_cast<int32_t>(out_.vertices));
    });
    struct Range {
      int64_t image, begin, end;
    };
    std::vector<Range> ranges;
    for (int64_t b = 0; b < in_.batch; ++b) {
      const int64_t count = first_[b + 1] - first_[b];
      for (int64_t v = 0; v < count; v += kVerticesPerTask) {
        ranges.push_back({b, v, std::min(count, v + kVerticesPerTask)});
      }
    }
    tasks_.run(1 + static_cast<int64_t>(ranges.size()), [&](int64_t task) {
      if (task == 0) return sort_rows(out_.tile_vertices, out_.rows, out_.vertices, rows, starts);
      const auto [b, begin, end] = ranges[task - 1];
      find_neighbors(indices[b], KeySteps<Key>(layouts_[b]), out_.vertices, first_[b], begin, end,
                     neighbors);
    });
  }

  static constexpr int64_t kMost = (int64_t{1} << 31) - 1;

  const LatticeInput<T>& in_;
  const TaskRunner& tasks_;
  const LatticeAllocator& allocate_;
  int64_t* vertex_count_;
  const char* name_;
  T scale_[permutohedral::kMaxDimensions];
  LatticeView<T> out_;
  int32_t* slots_ = nullptr;
  T* barycentric_ = nullptr;
  std::vector<KeyLayout> layouts_;
  std::vector<int64_t> first_;  // vertex of each image, and their total
};

}  // namespace

template <class T>
LatticeView<T> build_lattice(const LatticeInput<T>& input, const TaskRunner& tasks,
                             const LatticeAllocator& allocate, int64_t* vertex_count,
                             const char* name) {
  return Builder<T>(input, tasks, allocate, vertex_count, name).build();
}

template LatticeView<float> build_lattice(const LatticeInput<float>&, const TaskRunner&,
                                          const LatticeAllocator&, int64_t*, const char*);
template LatticeView<double> build_lattice(const LatticeInput<double>&, const TaskRunner&,
                                           const LatticeAllocator&, int64_t*, const char*);

}  // namespace fastseg::cpu
