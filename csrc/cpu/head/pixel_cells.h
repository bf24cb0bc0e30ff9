#pragma once
// Pixels of a block of cells (bilinear_cells.h) in a band of rows: [row][phase][lane].

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/head/cell_row.h"
#include "cpu/head/pixel_map.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// The columns of a block's pixels, and each one's place in the block's [phase][lane].
template <class F>
struct PixelRun {
  PixelRun(const BilinearCells<F>& cells, int64_t block) : slots(cells.slots.data()) {
    const int64_t last = std::min((block + 1) * cells.lanes, cells.cells) - 1;
    begin = cells.first[block * cells.lanes];
    end = cells.first[last] + cells.count[last];
    base = static_cast<int32_t>(block * cells.block_slots());
  }

  int32_t slot(int64_t x) const { return slots[x] - base; }

  // To the pixels' slots, from a row of numbers that are `stride` apart.
  void scatter(const F* from, int64_t stride, F* to) const {
    for (int64_t x = begin; x < end; ++x) to[slot(x)] = from[x * stride];
  }
  void gather(const F* from, F* to) const {
    for (int64_t x = begin; x < end; ++x) to[x] = from[slot(x)];
  }

  const int32_t* slots;
  int64_t begin, end;
  int32_t base;
};

// The targets of a band, of which kernels see one block at a time.
template <class F>
class TargetCells {
 public:
  using Code = typename Simd<F>::I;
  static constexpr Code kNone = -1;  // of a pixel that is ignored, and of lanes without a pixel

  TargetCells(const TargetMap& map, const BilinearCells<F>& cells, int64_t classes)
      : map_(map),
        cells_(cells),
        classes_(classes),
        row_slots_(cells.blocks * cells.block_slots()),
        codes_(kMostRows * row_slots_),
        seen_(cells.blocks * (classes + 1)) {}

  // Reads whole rows, which the processor then sees coming.
  void load(int64_t n, const BilinearBand& band) {
    std::fill_n(codes_.begin(), (band.end - band.begin) * row_slots_, kNone);
    std::fill(seen_.begin(), seen_.end(), Code{0});
    for (int64_t y = band.begin; y < band.end; ++y) {
      Code* codes = codes_.data() + (y - band.begin) * row_slots_;
      map_.visit_row(n, y, [&](const auto* row) {
        bool bad = false;
        for (int64_t block = 0; block < cells_.blocks; ++block) {
          bad |= load_block(PixelRun<F>(cells_, block), row, codes, seen_of(block));
        }
        if (bad) report(row);
      });
    }
  }

  // Returns whether there is a target among the block's pixels.
  bool select(int64_t block) {
    block_ = block;
    const Code* seen = seen_of(block);
    present_.clear();
    for (int64_t k = 0; k < classes_; ++k) {
      if (seen[k + 1]) present_.push_back(k);
    }
    return !present_.empty();
  }

  // The codes of the block's pixels in a row of the band, [phase][lane].
  const Code* row(int64_t row) const {
    return codes_.data() + row * row_slots_ + block_ * cells_.block_slots();
  }
  bool has(int64_t k) const { return seen_[block_ * (classes_ + 1) + k + 1]; }
  const std::vector<int64_t>& present() const { return present_; }

 private:
  Code* seen_of(int64_t block) { return seen_.data() + block * (classes_ + 1); }

  template <class Id>
  bool load_block(const PixelRun<F> run, const Id* row, Code* codes, Code* seen) const {
    const int64_t ignored = map_.ignore_index;
    const auto classes = static_cast<uint64_t>(classes_);
    bool bad = false;
    for (int64_t x = run.begin; x < run.end; ++x) {
      const auto target = static_cast<int64_t>(row[x]);
      Code code = kNone;
      if (target != ignored) {
        const bool inside = static_cast<uint64_t>(target) < classes;
        code = inside ? static_cast<Code>(target) : kNone;
        bad |= !inside;
      }
      codes[run.slots[x]] = code;
      seen[code + 1] = 1;
    }
    return bad;
  }

  template <class Id>
  void report(const Id* row) const {
    for (int64_t x = 0; x < map_.width; ++x) {
      const auto target = static_cast<int64_t>(row[x]);
      const bool inside = target >= 0 && target < classes_;
      if (target != map_.ignore_index && !inside) map_.bad->value = target;
    }
    map_.bad->found = true;
  }

  const TargetMap& map_;
  const BilinearCells<F>& cells_;
  const int64_t classes_, row_slots_;
  std::vector<Code> codes_;  // [row][block][phase][lane]
  std::vector<Code> seen_;   // [block][class + 1]
  int64_t block_ = 0;
  std::vector<int64_t> present_;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
