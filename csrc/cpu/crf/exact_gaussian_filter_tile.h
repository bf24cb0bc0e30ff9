#pragma once
// The steps that the exact Gaussian filter and its gradient share, on a tile of up to kBlock keys
// by kBlock queries. Queries lie along the lanes.

#include <algorithm>
#include <vector>

#include "cpu/crf/exact_gaussian_filter.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/simd_exp.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// Vectors of queries that a register tile holds: with 32 registers 4, with 16 two.
inline constexpr int kVectors = FASTSEG_SIMD_BYTES == 64 ? 4 : 2;

// weights[j][q] = exp(-|queries_q - keys_j|^2 / 2), by differences: |f|^2 may be thousands where
// distances are less than one. `queries` is (dims, kBlock), `keys` (n, dims).
template <class T, int Dims>
void weigh_dims(const T* queries, const T* keys, int64_t any_dims, int64_t n, T* weights) {
  using S = Simd<T>;
  using V = typename S::Value;
  constexpr int L = kLanes<T>, U = 2;  // two chains of dependent operations at once
  const int64_t dims = Dims > 0 ? Dims : any_dims;
  for (int64_t q = 0; q < kBlock; q += U * L) {
    for (int64_t j = 0; j < n; ++j) {
      V x[U] = {};
      for (int64_t a = 0; a < dims; ++a) {
        for (int u = 0; u < U; ++u) {
          const V difference = S::load(queries + a * kBlock + q + u * L) - keys[j * dims + a];
          x[u] += difference * difference;
        }
      }
      for (int u = 0; u < U; ++u) {
        S::store(weights + j * kBlock + q + u * L, exp_of_minus_half<V, T>(x[u]));
      }
    }
  }
}

template <class T>
void weigh(const T* queries, const T* keys, int64_t dims, int64_t n, T* weights) {
  switch (dims) {
    case 2:
      return weigh_dims<T, 2>(queries, keys, dims, n, weights);
    case 3:
      return weigh_dims<T, 3>(queries, keys, dims, n, weights);
    case 5:
      return weigh_dims<T, 5>(queries, keys, dims, n, weights);
    case 6:
      return weigh_dims<T, 6>(queries, keys, dims, n, weights);
    default:
      return weigh_dims<T, 0>(queries, keys, dims, n, weights);
  }
}

// out[c][q] += sum_j rows[j][c] weights[j][q] for C channels.
template <class T, int C>
void accumulate_channels(const T* weights, const T* rows, int64_t stride, int64_t n, T* out) {
  using S = Simd<T>;
  using V = typename S::Value;
  constexpr int L = kLanes<T>;
  for (int64_t q = 0; q < kBlock; q += kVectors * L) {
    V sum[C][kVectors] = {};
    for (int64_t j = 0; j < n; ++j) {
      V w[kVectors];
      for (int i = 0; i < kVectors; ++i) w[i] = S::load(weights + j * kBlock + q + i * L);
      for (int c = 0; c < C; ++c) {
        for (int i = 0; i < kVectors; ++i) sum[c][i] += w[i] * rows[j * stride + c];
      }
    }
    for (int c = 0; c < C; ++c) {
      for (int i = 0; i < kVectors; ++i) {
        T* p = out + c * kBlock + q + i * L;
        S::store(p, S::load(p) + sum[c][i]);
      }
    }
  }
}

// out[c][q] += sum_j rows[j][c] weights[j][q]; a row has `stride` elements.
template <class T>
void accumulate(const T* weights, const T* rows, int64_t stride, int64_t channels, int64_t n,
                T* out) {
  constexpr int64_t kMost = 6;
  const int64_t tiles = (channels + kMost - 1) / kMost;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t c = channels * t / tiles, count = channels * (t + 1) / tiles - c;
    constexpr decltype(&accumulate_channels<T, 1>) kernels[kMost] = {
        accumulate_channels<T, 1>, accumulate_channels<T, 2>, accumulate_channels<T, 3>,
        accumulate_channels<T, 4>, accumulate_channels<T, 5>, accumulate_channels<T, 6>};
    kernels[count - 1](weights, rows + c, stride, n, out + c * kBlock);
  }
}

// The leaves whose boxes come within the limit of the block's, ascending.
template <class T>
void find_near_leaves(const ExactGaussian<T>& image, int64_t block, std::vector<int32_t>& near) {
  constexpr int64_t kStretch = 64;
  const int64_t leaves = image.leaves(), own = block * (kBlock / kLeaf);
  near.clear();
  for (int64_t first = 0; first < leaves; first += kStretch) {
    const int64_t n = std::min(kStretch, leaves - first);
    T square[kStretch] = {};
    for (int64_t a = 0; a < image.dims; ++a) {
      const T* lower = image.lower + a * leaves;
      const T* upper = image.upper + a * leaves;
      const T from = *std::min_element(lower + own, lower + own + kBlock / kLeaf);
      const T to = *std::max_element(upper + own, upper + own + kBlock / kLeaf);
      for (int64_t i = 0; i < n; ++i) {
        const T below = lower[first + i] - to, above = from - upper[first + i];
        const T gap = std::max(T{0}, std::max(below, above));
        square[i] += gap * gap;
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      if (!(square[i] > image.limit)) near.push_back(static_cast<int32_t>(first + i));
    }
  }
}

// Calls body(tile, n) for tiles of n <= kBlock keys that cover the near leaves in their order,
// after copy(leaf, at) put each leaf at its row in the tile.
template <class Copy, class Body>
void for_each_tile(const std::vector<int32_t>& near, const Copy& copy, const Body& body) {
  for (size_t i = 0; i < near.size(); i += kBlock / kLeaf) {
    const size_t end = std::min<size_t>(near.size(), i + kBlock / kLeaf);
    for (size_t k = i; k < end; ++k) copy(near[k], (k - i) * kLeaf);
    body(static_cast<int64_t>(end - i) * kLeaf);
  }
}

// to[i][q] = from[q][first + i] for the kBlock rows of `from`.
template <class T>
void transpose_block(const T* from, int64_t stride, int64_t first, int64_t count, T* to) {
  for (int64_t q = 0; q < kBlock; ++q) {
    for (int64_t i = 0; i < count; ++i) to[i * kBlock + q] = from[q * stride + first + i];
  }
}

// (count, kBlock) sums to the block's points in the image's order.
template <class T>
void scatter_block(const ExactGaussian<T>& image, int64_t block, const T* sums, int64_t count,
                   T* to) {
  const int32_t* order = image.order + block * kBlock;
  const int64_t n = std::min(kBlock, image.points - block * kBlock);
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t q = 0; q < n; ++q) to[c * image.points + order[q]] = sums[c * kBlock + q];
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
