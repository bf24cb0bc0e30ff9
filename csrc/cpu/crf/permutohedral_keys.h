#pragma once
// Keys of lattice vertices, steps between them, and tables of them.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/crf/permutohedral_simplex.h"
#include "cpu/memory/buffer.h"

namespace fastseg::cpu {

// How to pack the vertices of points whose quotients lie in `count` ranges, and all vertices up to
// `steps` steps from them. Throws std::runtime_error where no key is wide enough; the message
// begins with the op's name.
inline KeyLayout key_layout(int d, const QuotientRange* ranges, int64_t count, int steps,
                            const char* name) {
  KeyLayout layout;
  layout.d = d;
  // The nearest point moves by one into the plane, and a simplex reaches one down from vertex 0.
  for (int j = 0; j < d; ++j) {
    int32_t low = 0, high = 0;  // the origin, for origin_pads
    for (int64_t t = 0; t < count; ++t) {
      low = std::min(low, ranges[t].low[j]), high = std::max(high, ranges[t].high[j]);
    }
    layout.low[j] = low - 2 - steps;
    layout.shift[j] = layout.bits;
    layout.bits += std::bit_width(static_cast<uint32_t>(high + 1 + steps - layout.low[j]));
  }
  if (layout.bits > 128) {
    throw std::runtime_error(std::string("fastseg::") + name +
                             ": features must span fewer lattice cells, got " +
                             std::to_string(layout.bits) +
                             " bits for a vertex, of which 128 are there: use larger bandwidths");
  }
  return layout;
}

// What additions turn a vertex into others; see common/crf/permutohedral.h.
template <class Key>
class KeySteps {
 public:
  explicit KeySteps(const KeyLayout& layout) : d_(layout.d) {
    for (int j = 0; j < d_; ++j) units_[j] = Key{1} << layout.shift[j], all_ += units_[j];
  }

  int dimensions() const { return d_; }

  // One less on the quotient of coordinate j, which is 0 for j = d.
  Key unit(int j) const { return units_[j]; }

  Key forward(Key key, int axis) const {
    return (remainder(key) < d_ ? key + 1 : key + all_ - d_) - units_[axis];
  }
  Key back(Key key, int axis) const {
    return (remainder(key) > 0 ? key - 1 : key - all_ + d_) + units_[axis];
  }

 private:
  static int remainder(Key key) {
    return static_cast<int>(key & ((1 << KeyLayout::kRemainderBits) - 1));
  }

  int d_;
  Key units_[permutohedral::kMaxDimensions + 1] = {};
  Key all_ = 0;
};

inline uint64_t hash(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ (key >> 32);
}
inline uint64_t hash(WideKey key) {
  return hash(hash(static_cast<uint64_t>(key)) + static_cast<uint64_t>(key >> 64));
}

// The fingerprints and numbers of keys; the keys themselves are kept by whoever uses it.
class KeyTable {
 public:
  static constexpr int32_t kNone = -1;

  struct Entry {
    uint32_t tag;
    int32_t number;  // or kNone
  };

  // Forgets everything and makes room for `keys` keys.
  void reset(int64_t keys) {
    size_t size = 16;
    while (size < static_cast<size_t>(2 * keys)) size *= 2;
    entries_.assign(size, {0, kNone});
    mask_ = size - 1;
  }

  int64_t capacity() const { return static_cast<int64_t>(entries_.size() / 2); }

  // The entry of a key, or the empty one where it belongs. same(number): whether a number is that
  // key's.
  template <class Same>
  Entry& find(uint64_t hashed, const Same& same) {
    size_t at = place(hashed);
    while (entries_[at].number != kNone &&
           !(entries_[at].tag == static_cast<uint32_t>(hashed) && same(entries_[at].number))) {
      at = (at + 1) & mask_;
    }
    return entries_[at];
  }
  template <class Same>
  int32_t number(uint64_t hashed, const Same& same) const {
    return const_cast<KeyTable*>(this)->find(hashed, same).number;
  }

  const Entry& first_entry(uint64_t hashed) const { return entries_[place(hashed)]; }
  LargeVector<Entry>& entries() { return entries_; }

 private:
  size_t place(uint64_t hashed) const { return (hashed >> 32) & mask_; }

  LargeVector<Entry> entries_;
  size_t mask_ = 0;
};

// Distinct keys, numbered in the order of their first appearance.
template <class Key>
class KeyNumbers {
 public:
  void reset(int64_t expected) {
    keys_.clear();
    table_.reset(expected);
  }

  int32_t find_or_add(Key key) {
    const uint64_t hashed = hash(key);
    KeyTable::Entry& entry = find(key, hashed);
    if (entry.number == KeyTable::kNone) {
      entry = {static_cast<uint32_t>(hashed), static_cast<int32_t>(keys_.size())};
      keys_.push_back(key);
      if (static_cast<int64_t>(keys_.size()) > table_.capacity()) grow();
      return static_cast<int32_t>(keys_.size()) - 1;
    }
    return entry.number;
  }

  // The number of a key, or KeyTable::kNone.
  int32_t find(Key key) const {
    return table_.number(hash(key), [&](int32_t number) { return keys_[number] == key; });
  }

  const LargeVector<Key>& keys() const { return keys_; }

 private:
  KeyTable::Entry& find(Key key, uint64_t hashed) {
    return table_.find(hashed, [&](int32_t number) { return keys_[number] == key; });
  }
  void grow() {
    table_.reset(2 * table_.capacity());
    for (size_t i = 0; i < keys_.size(); ++i) {
      const uint64_t hashed = hash(keys_[i]);
      find(keys_[i], hashed) = {static_cast<uint32_t>(hashed), static_cast<int32_t>(i)};
    }
  }

  LargeVector<Key> keys_;
  KeyTable table_;
};

}  // namespace fastseg::cpu
