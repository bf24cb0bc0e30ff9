#pragma once
// What a lattice knows of its vertices once they have numbers: neighbours, and the rows of each.

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cpu/crf/permutohedral_index.h"

namespace fastseg::cpu {

// The neighbours (d + 1, 2, vertices) of an image's vertices [begin, end), whose first has the
// number `first`: those one step forward are written for each, and these then know their back.
template <class Key>
void find_neighbors(const KeyIndex<Key>& index, const KeySteps<Key>& steps, int64_t vertices,
                    int64_t first, int64_t begin, int64_t end, int32_t* neighbors) {
  constexpr int kAtOnce = 32;  // look-ups under way
  const int32_t none = static_cast<int32_t>(vertices);
  Key keys[kAtOnce];
  uint64_t hashes[kAtOnce];
  for (int axis = 0; axis <= steps.dimensions(); ++axis) {
    int32_t* back = neighbors + 2 * axis * vertices;
    int32_t* forward = back + vertices;
    for (int64_t v = begin; v < end; v += kAtOnce) {
      const int n = static_cast<int>(std::min<int64_t>(kAtOnce, end - v));
      for (int i = 0; i < n; ++i) {
        keys[i] = steps.forward(index.keys()[v + i], axis);
        hashes[i] = hash(keys[i]);
        index.prefetch(hashes[i]);
      }
      for (int i = 0; i < n; ++i) {
        const int32_t found = index.find(keys[i], hashes[i]);
        const int32_t vertex = static_cast<int32_t>(first + v + i);
        forward[vertex] = found < 0 ? none : static_cast<int32_t>(first + found);
        if (found >= 0) back[first + found] = vertex;
      }
    }
  }
}

// Sorts the rows of all tiles by their vertex, then ascending; starts (vertices + 1) gets each
// vertex' part of `sorted`.
inline void sort_rows(const int32_t* row_vertices, int64_t rows, int64_t vertices, int32_t* sorted,
                      int32_t* starts) {
  std::fill_n(starts, vertices + 1, 0);
  for (int64_t r = 0; r < rows; ++r) ++starts[row_vertices[r] + 1];
  std::partial_sum(starts, starts + vertices + 1, starts);
  LargeVector<int32_t> next(starts, starts + vertices);
  for (int64_t r = 0; r < rows; ++r) sorted[next[row_vertices[r]]++] = static_cast<int32_t>(r);
}

}  // namespace fastseg::cpu
