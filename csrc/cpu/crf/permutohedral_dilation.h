#pragma once
// Vertices beside those that points touch, so that the blur's mass does not end at them.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/crf/permutohedral_index.h"

namespace fastseg::cpu {

// Adds all neighbours of the index's vertices or, if joining, those that are next to vertices along
// two axes or more. The vertices of before keep their numbers.
template <class Key>
void dilate(KeyIndex<Key>& index, const KeySteps<Key>& steps, bool joining,
            const TaskRunner& tasks) {
  constexpr int64_t kPerTask = 4096;
  constexpr int kAtOnce = 32;
  const int64_t count = static_cast<int64_t>(index.keys().size());
  std::vector<KeyList<Key>> around((count + kPerTask - 1) / kPerTask);
  tasks.run(static_cast<int64_t>(around.size()), [&](int64_t t) {
    KeyNumbers<Key> found;
    found.reset(2 * kPerTask);
    KeyList<Key>& list = around[t];
    Key keys[kAtOnce];
    uint64_t hashes[kAtOnce];
    const int64_t end = std::min(count, (t + 1) * kPerTask);
    for (int64_t v = t * kPerTask; v < end; v += kAtOnce) {
      const int n = static_cast<int>(std::min<int64_t>(kAtOnce, end - v));
      for (int side = 0; side < 2 * (steps.dimensions() + 1); ++side) {
        const int axis = side / 2;
        for (int i = 0; i < n; ++i) {
          const Key key = index.keys()[v + i];
          keys[i] = side % 2 ? steps.forward(key, axis) : steps.back(key, axis);
          hashes[i] = hash(keys[i]);
          index.prefetch(hashes[i]);
        }
        for (int i = 0; i < n; ++i) {
          if (index.find(keys[i], hashes[i]) >= 0) continue;
          const size_t number = found.find_or_add(keys[i]);
          if (number == list.marks.size()) list.marks.push_back(0);
          list.marks[number] |= static_cast<uint16_t>(1 << axis);
        }
      }
    }
    list.keys = found.keys();
  });

  size_t total = 0;
  for (const KeyList<Key>& list : around) total += list.keys.size();
  LargeVector<int32_t> numbers(total);
  KeyIndex<Key> added;
  added.build(around, numbers.data(), tasks, /*fewest_marks=*/joining ? 2 : 1);

  // One index of both, so that a look-up asks one table.
  std::vector<KeyList<Key>> all;
  const auto append = [&](const LargeVector<Key>& keys) {
    for (size_t i = 0; i < keys.size(); i += kPerTask) {
      const size_t end = std::min(keys.size(), i + kPerTask);
      all.emplace_back().keys.assign(keys.begin() + i, keys.begin() + end);
    }
  };
  append(index.keys()), append(added.keys());
  numbers.resize(index.keys().size() + added.keys().size());
  KeyIndex<Key> both;
  both.build(all, numbers.data(), tasks);
  index = std::move(both);
}

}  // namespace fastseg::cpu
