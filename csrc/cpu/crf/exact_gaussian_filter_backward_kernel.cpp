// The gradients of the exact Gaussian filter, for a block of kBlock queries: with weights k_ij,
// values v and gradients g of the outputs
//   grad_values_i   = sum_j k_ij g_j
//   grad_features_i = sum_j k_ij s_ij (f_j - f_i),  s_ij = g_i.v_j + v_i.g_j.
//
// Tiles as in exact_gaussian_filter_kernel.cpp. s is a product of the concatenations (g_i, v_i) and
// (v_j, g_j). The features are taken from the block's centre, so that sum_j k s f_j and
// f_i sum_j k s do not cancel.
//
// Floor: for each pair 2 d + 21 operations for the weight, 2 C for grad_values, 4 C + 1 for s and
// 2 (d + 1) for grad_features: 170 at d = 5, C = 21.

#include "cpu/crf/exact_gaussian_filter_tile.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// weights[j][q] *= sum_c queries[c][q] rows[j][c]; n is a multiple of 4.
template <class T>
void multiply_by_products(const T* queries, const T* rows, int64_t channels, int64_t n,
                          T* weights) {
  using S = Simd<T>;
  using V = typename S::Value;
  constexpr int L = kLanes<T>, J = 4;
  for (int64_t q = 0; q < kBlock; q += kVectors * L) {
    for (int64_t j = 0; j < n; j += J) {
      V sum[J][kVectors] = {};
      for (int64_t c = 0; c < channels; ++c) {
        V x[kVectors];
        for (int i = 0; i < kVectors; ++i) x[i] = S::load(queries + c * kBlock + q + i * L);
        for (int k = 0; k < J; ++k) {
          for (int i = 0; i < kVectors; ++i) sum[k][i] += x[i] * rows[(j + k) * channels + c];
        }
      }
      for (int k = 0; k < J; ++k) {
        for (int i = 0; i < kVectors; ++i) {
          T* p = weights + (j + k) * kBlock + q + i * L;
          S::store(p, S::load(p) * sum[k][i]);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void exact_gaussian_filter_backward_block(const ExactGaussian<T>& image, int64_t block) {
  const int64_t dims = image.dims, channels = image.channels, both = 2 * channels;
  std::vector<int32_t> near;
  find_near_leaves(image, block, near);
  std::vector<T> queries(dims * kBlock), query_rows(both * kBlock), keys(dims * kBlock),
      moments((dims + 1) * kBlock), weights(kBlock * kBlock), rows(both * kBlock),
      grad_values(channels * kBlock, T{0}), grad_features((dims + 1) * kBlock, T{0});
  transpose_block(image.features + block * kBlock * dims, dims, 0, dims, queries.data());
  const T* own = image.rows + block * kBlock * both;
  transpose_block(own, both, channels, channels, query_rows.data());
  transpose_block(own, both, 0, channels, query_rows.data() + channels * kBlock);
  const T* centre = image.features + (block * kBlock + kBlock / 2) * dims;
  const auto copy = [&](int64_t leaf, int64_t at) {
    const T* from = image.features + leaf * kLeaf * dims;
    std::copy_n(from, kLeaf * dims, keys.data() + at * dims);
    std::copy_n(image.rows + leaf * kLeaf * both, kLeaf * both, rows.data() + at * both);
    T* moment = moments.data() + at * (dims + 1);
    for (int64_t k = 0; k < kLeaf; ++k) {
      for (int64_t a = 0; a < dims; ++a) *moment++ = *from++ - centre[a];
      *moment++ = T{1};
    }
  };
  for_each_tile(near, copy, [&](int64_t n) {
    weigh(queries.data(), keys.data(), dims, n, weights.data());
    accumulate(weights.data(), rows.data() + channels, both, channels, n, grad_values.data());
    multiply_by_products(query_rows.data(), rows.data(), both, n, weights.data());
    accumulate(weights.data(), moments.data(), dims + 1, dims + 1, n, grad_features.data());
  });
  const T* total = grad_features.data() + dims * kBlock;
  for (int64_t a = 0; a < dims; ++a) {
    for (int64_t q = 0; q < kBlock; ++q) {
      grad_features[a * kBlock + q] -= (queries[a * kBlock + q] - centre[a]) * total[q];
    }
  }
  scatter_block(image, block, grad_values.data(), channels, image.out);
  scatter_block(image, block, grad_features.data(), dims, image.grad_features);
}

#define FASTSEG_INSTANTIATE(T) \
  template void exact_gaussian_filter_backward_block(const ExactGaussian<T>&, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
