// fastseg::exact_gaussian_filter and its backward on the CPU: points to the order of a k-d tree,
// then a task for each block of queries.

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

// The buffers of one image.
template <class T>
struct SortedImage {
  int64_t dims, row, points, padded;  // a row: what the kernel reads of each point
  LargeVector<int32_t> order;
  LargeVector<T> features, lower, upper, rows;

  SortedImage(const T* from, int64_t dims, int64_t row, int64_t points)
      : dims(dims),
        row(row),
        points(points),
        padded((points + kBlock - 1) / kBlock * kBlock),
        order(padded),
        features(padded * dims),
        lower(padded / kLeaf * dims),
        upper(padded / kLeaf * dims),
        rows(padded * row) {
    LargeVector<T> by_point(points * dims);
    for (int64_t i = 0; i < points; ++i) {
      for (int64_t a = 0; a < dims; ++a) by_point[i * dims + a] = from[a * points + i];
    }
    KdTree<T> tree(by_point.data(), dims, order.data());
    const std::vector<KdNode> nodes = tree.split_root(points);
    TorchTasks().run(static_cast<int64_t>(nodes.size()), [&](int64_t i) { tree.sort(nodes[i]); });
    std::fill(order.begin() + points, order.end(), order[points - 1]);
    TorchTasks().run(padded / kBlock, [&](int64_t block) {
      for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
        std::copy_n(by_point.data() + order[i] * dims, dims, features.data() + i * dims);
      }
      for (int64_t leaf = block * kBlock / kLeaf; leaf < (block + 1) * kBlock / kLeaf; ++leaf) {
        find_box(leaf);
      }
    });
  }

  // Channels of (channels, points) to the elements [first, first + channels) of each row.
  void take(const T* from, int64_t channels, int64_t first) {
    TorchTasks().run(padded / kBlock, [&](int64_t block) {
      const int64_t end = std::min(points, (block + 1) * kBlock);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = block * kBlock; i < end; ++i) {
          rows[i * row + first + c] = from[c * points + order[i]];
        }
      }
    });
  }

 private:
  void find_box(int64_t leaf) {
    const int64_t leaves = padded / kLeaf;
    for (int64_t a = 0; a < dims; ++a) {
      const T* p = features.data() + leaf * kLeaf * dims + a;
      T low = *p, high = *p;
      for (int64_t i = 1; i < kLeaf; ++i) {
        low = std::min(low, p[i * dims]);
        high = std::max(high, p[i * dims]);
      }
      lower[a * leaves + leaf] = low;
      upper[a * leaves + leaf] = high;
    }
  }
};

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

template <class T>
void filter_of(const ExactGaussianCall& call, const char* op) {
  const int64_t batch = call.values.size(0), channels = call.values.size(1);
  const int64_t points = call.values.size(2), dims = call.features.size(1);
  const T* values = static_cast<const T*>(call.values.const_data_ptr());
  const T* features = static_cast<const T*>(call.features.const_data_ptr());
  check_finite(features, batch * dims * points, op);
  if (points == 0) return;
  const bool backward = call.grad != nullptr;
  const T* grad = backward ? static_cast<const T*>(call.grad->const_data_ptr()) : nullptr;
  T* out = static_cast<T*>(call.out.mutable_data_ptr());
  T* grad_features = backward ? static_cast<T*>(call.grad_features->mutable_data_ptr()) : nullptr;
  const auto kernel = backward
                          ? FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_backward_block<T>)
                          : FASTSEG_SIMD_DISPATCH_OF(T, exact_gaussian_filter_block<T>);
  for (int64_t b = 0; b < batch; ++b) {
    SortedImage<T> sorted(features + b * dims * points, dims, channels * (backward ? 2 : 1),
                          points);
    sorted.take(values + b * channels * points, channels, 0);
    if (backward) sorted.take(grad + b * channels * points, channels, channels);
    const ExactGaussian<T> image{dims,
                                 channels,
                                 points,
                                 sorted.padded,
                                 static_cast<T>(call.limit),
                                 sorted.order.data(),
                                 sorted.features.data(),
                                 sorted.lower.data(),
                                 sorted.upper.data(),
                                 sorted.rows.data(),
                                 out + b * channels * points,
                                 backward ? grad_features + b * dims * points : nullptr};
    TorchTasks().run(sorted.padded / kBlock, [&](int64_t block) { kernel(image, block); });
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
  using fastseg::cpu::filter;
  m.impl("exact_gaussian_filter", TORCH_BOX(&ops::exact_gaussian_filter<filter>));
  m.impl("exact_gaussian_filter_backward", TORCH_BOX(&ops::exact_gaussian_filter_backward<filter>));
}
