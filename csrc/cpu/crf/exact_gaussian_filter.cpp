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
void find_boxes(const T* features, int64_t dims, int64_t block, int64_t leaves, T* lower, T* upper) {
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

template <class T>
void build_of(const Tensor& of, ExactGaussianBlocks& out, const char* op) {
  const int64_t batch = of.size(0), dims = of.size(1), points = of.size(2);
  const int64_t padded = exact_gaussian::padded_points(points), leaves = padded / kLeaf;
  const T* from = static_cast<const T*>(of.const_data_ptr());
  check_finite(from, batch * dims * points, op);
  if (points == 0) return;
  int32_t* order = static_cast<int32_t*>(out.order.mutable_data_ptr());
  T* features = static_cast<T*>(out.features.mutable_data_ptr());
  T* lower = static_cast<T*>(out.lower.mutable_data_ptr());
  T* upper = static_cast<T*>(out.upper.mutable_data_ptr());
  LargeVector<T> by_point(points * dims);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < points; ++i) {
      for (int64_t a = 0; a < dims; ++a) by_point[i * dims + a] = from[a * points + i];
    }
    KdTree<T> tree(by_point.data(), dims, order);
    const std::vector<KdNode> nodes = tree.split_root(points);
    TorchTasks().run(static_cast<int64_t>(nodes.size()), [&](int64_t i) { tree.sort(nodes[i]); });
    std::fill(order + points, order + padded, order[points - 1]);
    TorchTasks().run(padded / kBlock, [&](int64_t block) {
      for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
        std::copy_n(by_point.data() + order[i] * dims, dims, features + i * dims);
      }
      find_boxes(features, dims, block, leaves, lower, upper);
    });
    from += dims * points;
    order += padded;
    features += padded * dims;
    lower += leaves * dims;
    upper += leaves * dims;
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
void filter_of(const ExactGaussianCall& call) {
  const int64_t batch = call.values.size(0), channels = call.values.size(1);
  const int64_t points = call.values.size(2), dims = call.blocks.features.size(2);
  const int64_t padded = call.blocks.features.size(1), leaves = padded / kLeaf;
  if (points == 0) return;
  const auto data = [](const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); };
  const bool backward = call.grad != nullptr;
  const int64_t row = channels * (backward ? 2 : 1);
  const auto kernel = backward
                          ? FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_backward_block<T>)
                          : FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_block<T>);
  LargeVector<T> rows(padded * row);  // zeros behind the points
  ExactGaussian<T> image{
      dims,
      channels,
      points,
      padded,
      static_cast<T>(call.limit),
      static_cast<const int32_t*>(call.blocks.order.const_data_ptr()),
      data(call.blocks.features),
      data(call.blocks.lower),
      data(call.blocks.upper),
      rows.data(),
      static_cast<T*>(call.out.mutable_data_ptr()),
      backward ? static_cast<T*>(call.grad_features->mutable_data_ptr()) : nullptr};
  for (int64_t b = 0; b < batch; ++b) {
    take(data(call.values) + b * channels * points, image, row, 0, rows.data());
    if (backward) {
      take(data(*call.grad) + b * channels * points, image, row, channels, rows.data());
    }
    TorchTasks().run(padded / kBlock, [&](int64_t block) { kernel(image, block); });
    image.order += padded;
    image.features += padded * dims;
    image.lower += leaves * dims;
    image.upper += leaves * dims;
    image.out += channels * points;
    if (backward) image.grad_features += dims * points;
  }
}

void filter(const ExactGaussianCall& call) {
  if (call.values.scalar_type() == ScalarType::Double) return filter_of<double>(call);
  filter_of<float>(call);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::exact_gaussian_filter_ops;
  using fastseg::cpu::build;
  using fastseg::cpu::filter;
  m.impl("exact_gaussian_blocks", TORCH_BOX(&ops::exact_gaussian_blocks<build>));
  m.impl("exact_gaussian_filter", TORCH_BOX((&ops::exact_gaussian_filter<build, filter>)));
  m.impl("exact_gaussian_filter_backward",
         TORCH_BOX((&ops::exact_gaussian_filter_backward<build, filter>)));
}
