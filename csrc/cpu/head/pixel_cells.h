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

// The targets of a block.
template <class F>
class TargetCells {
 public:
  using Code = typename Simd<F>::I;
  static constexpr Code kNone = -1;  // of a pixel that is ignored, and of lanes without a pixel

  TargetCells(const TargetMap& map, const BilinearCells<F>& cells, int64_t classes)
      : map_(map),
        cells_(cells),
        classes_(classes),
        codes_(kMostRows * cells.block_slots()),
        seen_(classes + 1) {}

  // Returns whether there is a target among the band's pixels.
  bool load(int64_t n, const BilinearBand& band, int64_t block) {
    const PixelRun<F> run(cells_, block);
    std::fill(codes_.begin(), codes_.end(), kNone);
    std::fill(seen_.begin(), seen_.end(), Code{0});
    for (int64_t y = band.begin; y < band.end; ++y) {
      Code* codes = codes_.data() + (y - band.begin) * cells_.block_slots();
      map_.visit_row(n, y, [&](const auto* row) { load_row(run, row, codes); });
    }
    present_.clear();
    for (int64_t k = 0; k < classes_; ++k) {
      if (seen_[k + 1]) present_.push_back(k);
    }
    return !present_.empty();
  }

  const Code* row(int64_t row) const { return codes_.data() + row * cells_.block_slots(); }
  bool has(int64_t k) const { return seen_[k + 1]; }
  const std::vector<int64_t>& present() const { return present_; }

 private:
  template <class Id>
  void load_row(const PixelRun<F> run, const Id* row, Code* codes) {
    const int64_t classes = classes_, ignored = map_.ignore_index;
    Code* seen = seen_.data();
    bool bad = false;
    for (int64_t x = run.begin; x < run.end; ++x) {
      const auto target = static_cast<int64_t>(row[x]);
      const bool counts = target != ignored, inside = target >= 0 && target < classes;
      const Code code = counts && inside ? static_cast<Code>(target) : kNone;
      bad |= counts && !inside;
      codes[run.slot(x)] = code;
      seen[code + 1] = 1;
    }
    if (!bad) return;
    for (int64_t x = run.begin; x < run.end; ++x) {
      const auto target = static_cast<int64_t>(row[x]);
      if (target != ignored && (target < 0 || target >= classes)) map_.bad->value = target;
    }
    map_.bad->found = true;
  }

  const TargetMap& map_;
  const BilinearCells<F>& cells_;
  const int64_t classes_;
  std::vector<Code> codes_;
  std::vector<Code> seen_;  // by class + 1
  std::vector<int64_t> present_;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
