// out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j: a block of kBlock queries against every leaf of keys
// whose bounding box comes near enough.
//
// A tile of 64 keys by 64 queries of weights is made in L1 (16 KB of float) and multiplied into the
// channels by register tiles of 6 channels by 4 vectors (2 with 16 registers). The keys of a tile
// are copied together, 1/64 of the work on them.
//
// Floor: for each pair of points 2 d + 1 operations for the distance, 20 for the exponential, 2 C
// for the sum: 73 at d = 5, C = 21, and of these 21 + 5 + 8 are multiply-adds or occupy their unit,
// 2.1 cycles a pair where one vector of 16 floats starts in a cycle. Memory does not matter: 64
// queries share every key.
//
// Kraehenbuehl and Koltun 2011 (arXiv 1210.5644), eq. 3, the sum that they approximate.

#include "cpu/crf/exact_gaussian_filter_tile.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class T>
void exact_gaussian_filter_block(const ExactGaussian<T>& image, int64_t block) {
  const int64_t dims = image.dims, channels = image.channels;
  std::vector<int32_t> near;
  find_near_leaves(image, block, near);
  std::vector<T> queries(dims * kBlock), keys(dims * kBlock), weights(kBlock * kBlock),
      rows(channels * kBlock), sums(channels * kBlock, T{0});
  transpose_block(image.features + block * kBlock * dims, dims, 0, dims, queries.data());
  const auto copy = [&](int64_t leaf, int64_t at) {
    std::copy_n(image.features + leaf * kLeaf * dims, kLeaf * dims, keys.data() + at * dims);
    std::copy_n(image.rows + leaf * kLeaf * channels, kLeaf * channels,
                rows.data() + at * channels);
  };
  for_each_tile(near, copy, [&](int64_t n) {
    weigh(queries.data(), keys.data(), dims, n, weights.data());
    accumulate(weights.data(), rows.data(), channels, channels, n, sums.data());
  });
  scatter_block(image, block, sums.data(), channels, image.out);
}

#define FASTSEG_INSTANTIATE(T) \
  template void exact_gaussian_filter_block(const ExactGaussian<T>&, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
