// fastseg::exact_gaussian_blocks on the CPU: points to the order of a k-d tree. fastseg::
// exact_gaussian_filter and its backward: a task for each block of queries.

#include "cpu/crf/exact_gaussian_filter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "common/crf/exact_gaussian_filter_ops.h"
#include "cpu/crf/exact_gaussian_filter_order.h"
#include "cpu/crf/index_checks.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

template <class T>
void check_finite(const T* features, int64_t n, const char* op) {
  std::atomic<bool> bad{false};
  parallel_rows(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(features[i])) bad = true;
    }
  });
  FASTSEG_CHECK(!bad, op, ": features must be finite, got NaN or infinity");
}

// The corners of the boxes of a block's leaves.
template <class T>
void find_boxes(const T* features, int64_t dims, int64_t block, int64_t leaves, T* lower,
                T* upper) {
  for (int64_t leaf = block * kBlock / kLeaf; leaf < (block + 1) * kBlock / kLeaf; ++leaf) {
    for (int64_t a = 0; a < dims; ++a) {
      const T* p = features + leaf * kLeaf * dims + a;
      T low = *p, high = *p;
      for (int64_t i = 1; i < kLeaf; ++i) {
        low = std::min(low, p[i * dims]);
        high = std::max(high, p[i * dims]);
      }
      lower[a * leaves + leaf] = low;
      upper[a * leaves + leaf] = high;
    }
  }
}

// Where the blocks of an image are, see ExactGaussianBlocks.
template <class T>
struct BlocksOfImage {
  int32_t* order;
  T *features, *lower, *upper;

  void next_image(int64_t dims, int64_t padded) {
    order += padded;
    features += padded * dims;
    lower += padded / kLeaf * dims;
    upper += padded / kLeaf * dims;
  }
};

// Fills the blocks of the points `from`, (dims, points).
template <class T>
void build_image(const T* from, int64_t dims, int64_t points, const BlocksOfImage<T>& to) {
  const int64_t padded = exact_gaussian::padded_points(points);
  LargeVector<T> by_point(points * dims);
  for (int64_t i = 0; i < points; ++i) {
    for (int64_t a = 0; a < dims; ++a) by_point[i * dims + a] = from[a * points + i];
  }
  KdTree<T> tree(by_point.data(), dims, to.order);
  const std::vector<KdNode> nodes = tree.split_root(points);
  TorchTasks().run(static_cast<int64_t>(nodes.size()), [&](int64_t i) { tree.sort(nodes[i]); });
  std::fill(to.order + points, to.order + padded, to.order[points - 1]);
  TorchTasks().run(padded / kBlock, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
      std::copy_n(by_point.data() + to.order[i] * dims, dims, to.features + i * dims);
    }
    find_boxes(to.features, dims, block, padded / kLeaf, to.lower, to.upper);
  });
}

template <class T>
BlocksOfImage<T> first_image(const ExactGaussianBlocks& blocks) {
  const auto data = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  return {static_cast<int32_t*>(blocks.order.mutable_data_ptr()), data(blocks.features),
          data(blocks.lower), data(blocks.upper)};
}

template <class T>
void build_of(const Tensor& features, ExactGaussianBlocks& out, const char* op) {
  const int64_t batch = features.size(0), dims = features.size(1), points = features.size(2);
  const T* from = static_cast<const T*>(features.const_data_ptr());
  check_finite(from, batch * dims * points, op);
  if (points == 0) return;
  BlocksOfImage<T> to = first_image<T>(out);
  for (int64_t b = 0; b < batch; ++b) {
    build_image(from + b * dims * points, dims, points, to);
    to.next_image(dims, exact_gaussian::padded_points(points));
  }
}

void build(const Tensor& features, ExactGaussianBlocks& out, const char* op) {
  if (features.scalar_type() == ScalarType::Double) return build_of<double>(features, out, op);
  build_of<float>(features, out, op);
}

// Channels of (channels, points) to the elements [first, first + channels) of each row, in order.
template <class T>
void take(const T* from, const ExactGaussian<T>& image, int64_t row, int64_t first, T* rows) {
  TorchTasks().run(image.padded / kBlock, [&](int64_t block) {
    const int64_t end = std::min(image.points, (block + 1) * kBlock);
    for (int64_t c = 0; c < image.channels; ++c) {
      for (int64_t i = block * kBlock; i < end; ++i) {
        rows[i * row + first + c] = from[c * image.points + image.order[i]];
      }
    }
  });
}

template <class T>
void filter_of(const ExactGaussianCall& call, const char* op) {
  const int64_t batch = call.values.size(0), channels = call.values.size(1);
  const int64_t points = call.values.size(2), dims = call.features.size(1);
  const int64_t padded = exact_gaussian::padded_points(points), corners = padded / kLeaf * dims;
  const T* values = static_cast<const T*>(call.values.const_data_ptr());
  const T* features = static_cast<const T*>(call.features.const_data_ptr());
  if (!call.blocks) check_finite(features, batch * dims * points, op);
  if (points == 0) return;
  const bool backward = call.grad != nullptr;
  const T* grad = backward ? static_cast<const T*>(call.grad->const_data_ptr()) : nullptr;
  T* out = static_cast<T*>(call.out.mutable_data_ptr());
  T* grad_features = backward ? static_cast<T*>(call.grad_features->mutable_data_ptr()) : nullptr;
  const auto kernel = backward
                          ? FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_backward_block<T>)
                          : FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_block<T>);
  const int64_t row = channels * (backward ? 2 : 1);
  LargeVector<T> rows(padded * row);  // zeros behind the points
  LargeVector<int32_t> order(call.blocks ? 0 : padded);
  LargeVector<T> sorted(call.blocks ? 0 : padded * dims + 2 * corners);
  BlocksOfImage<T> blocks{order.data(), sorted.data(), sorted.data() + padded * dims,
                          sorted.data() + padded * dims + corners};
  if (call.blocks) {
    blocks = first_image<T>(*call.blocks);
    check_indices(TorchTasks(), op, "blocks[0]", blocks.order, batch * padded, points);
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (!call.blocks) build_image(features + b * dims * points, dims, points, blocks);
    const ExactGaussian<T> image{dims,
                                 channels,
                                 points,
                                 padded,
                                 static_cast<T>(call.limit),
                                 blocks.order,
                                 blocks.features,
                                 blocks.lower,
                                 blocks.upper,
                                 rows.data(),
                                 out + b * channels * points,
                                 backward ? grad_features + b * dims * points : nullptr};
    take(values + b * channels * points, image, row, 0, rows.data());
    if (backward) take(grad + b * channels * points, image, row, channels, rows.data());
    TorchTasks().run(padded / kBlock, [&](int64_t block) { kernel(image, block); });
    if (call.blocks) blocks.next_image(dims, padded);
  }
}

void filter(const ExactGaussianCall& call, const char* op) {
  if (call.features.scalar_type() == ScalarType::Double) return filter_of<double>(call, op);
  filter_of<float>(call, op);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::exact_gaussian_filter_ops;
  using fastseg::cpu::build;
  using fastseg::cpu::filter;
  m.impl("exact_gaussian_blocks", TORCH_BOX(&ops::exact_gaussian_blocks<build>));
  m.impl("exact_gaussian_filter", TORCH_BOX(&ops::exact_gaussian_filter<filter>));
  m.impl("exact_gaussian_filter_backward", TORCH_BOX(&ops::exact_gaussian_filter_backward<filter>));
}
