#pragma once
// The rows of a tile that its points' simplices have their vertices in.

#include <cstdint>
#include <cstring>

#include "cpu/crf/permutohedral_keys.h"

namespace fastseg::cpu {

// Numbers the vertices of one tile's simplices, and remembers the simplices met lately:
// neighbouring points often share one, and so do rows of pixels one above the other.
template <int D, class Key>
class TileSlots {
 public:
  TileSlots(const KeySteps<Key>& steps, KeyNumbers<Key>& vertices)
      : steps_(steps), vertices_(vertices) {}

  // Appends to `out` the D + 1 slots of each simplex, told by its vertex 0 and the ranks of its
  // coordinates (permutohedral_simplex.h).
  void look_up(int64_t points, const Key* keys, const uint32_t* orders, int32_t* out) {
    for (int64_t i = 0; i < points; ++i, out += D + 1) {
      Key key = keys[i];
      const uint32_t order = orders[i];
      Entry& entry = entries_[(hash(key) ^ order * 0x9E3779B1u) >> 24 & (kSize - 1)];
      if (entry.key != key || entry.order != order) {
        entry.key = key, entry.order = order;
        Key unit_of_rank[16] = {};
        for (int j = 0; j < D; ++j) unit_of_rank[order >> (4 * j) & 15] = steps_.unit(j);
        entry.slots[0] = vertices_.find_or_add(key);
        for (int r = 1; r <= D; ++r) {  // the coordinate of the next highest rank steps down
          key += 1 - unit_of_rank[D - r + 1];
          entry.slots[r] = vertices_.find_or_add(key);
        }
      }
      std::memcpy(out, entry.slots, sizeof entry.slots);
    }
  }

 private:
  static constexpr int kSize = 256;
  struct Entry {
    Key key{};
    uint32_t order = ~uint32_t{0};  // none is that
    int32_t slots[D + 1];
  };

  const KeySteps<Key>& steps_;
  KeyNumbers<Key>& vertices_;
  Entry entries_[kSize];
};

}  // namespace fastseg::cpu
