#pragma once
// From the sums of bands (band_sums.h) to the gradient of the logits that were upsampled.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/tensor_checks.h"
#include "cpu/head/bilinear_cells.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {

// The sums of all bands of all images, [task][source row at, next][class][column].
template <class F>
class UpsampleGradient {
 public:
  UpsampleGradient(const Tensor& grad, const std::vector<BilinearBand>& bands)
      : grad_(grad),
        bands_(static_cast<int64_t>(bands.size())),
        row_(grad.size(1) * grad.size(3)),
        sums_(grad.size(0) * bands_ * 2 * row_),
        parts_(grad.size(2)) {
    for (int64_t i = 0; i < bands_; ++i) {
      parts_[bands[i].at].push_back(2 * i);
      parts_[bands[i].next].push_back(2 * i + 1);
    }
  }

  F* sums() const { return sums_.get(); }

  // Adds the bands' sums, from the top down, and writes them to the gradient, of any strides.
  void write() const {
    if constexpr (std::is_same_v<F, double>) {
      write_as<double>();
    } else {
      dispatch_float(grad_.scalar_type(), [&](auto zero) { write_as<decltype(zero)>(); });
    }
  }

 private:
  template <class T>
  void write_as() const {
    T* out = static_cast<T*>(grad_.mutable_data_ptr());
    const auto stride = grad_.strides();
    const int64_t classes = grad_.size(1), height = grad_.size(2), width = grad_.size(3);
    parallel_rows(grad_.size(0) * height, 4 * row_, [&](int64_t begin, int64_t end) {
      std::vector<F> total(row_);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / height, y = i % height;
        std::fill(total.begin(), total.end(), F(0));
        for (const int64_t part : parts_[y]) {
          const F* from = sums_.get() + (n * bands_ * 2 + part) * row_;
          for (int64_t j = 0; j < row_; ++j) total[j] += from[j];
        }
        T* to = out + n * stride[0] + y * stride[2];
        for (int64_t k = 0; k < classes; ++k) {
          for (int64_t x = 0; x < width; ++x) {
            to[k * stride[1] + x * stride[3]] = static_cast<T>(total[k * width + x]);
          }
        }
      }
    });
  }

  const Tensor& grad_;
  const int64_t bands_, row_;
  Buffer<F> sums_;
  std::vector<std::vector<int64_t>> parts_;  // of a source row: 2 * band, + 1 for `next`
};

}  // namespace fastseg::cpu
