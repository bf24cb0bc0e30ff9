#pragma once
// From the arguments of the pooling ops to the geometry that the kernels take, with torch's rules
// for what is allowed and errors that name the argument.

#include <array>
#include <cstdint>
#include <vector>

#include "common/pool/pool2d.h"
#include "common/tensor_checks.h"

namespace fastseg {

using IntPair = std::array<int64_t, 2>;

struct Pool2dArgs {
  IntPair kernel_size, stride, padding, dilation;

  Pool2dArgs(const char* op, const std::vector<int64_t>& kernel,
             const std::vector<int64_t>& strides, const std::vector<int64_t>& pad,
             const std::vector<int64_t>& dil)
      : kernel_size(pair(op, "kernel_size", kernel)),
        stride(strides.empty() ? kernel_size : pair(op, "stride", strides)),
        padding(pair(op, "padding", pad)),
        dilation(pair(op, "dilation", dil)) {
    check_positive(op, "kernel_size", kernel_size);
    check_positive(op, "stride", stride);
    check_positive(op, "dilation", dilation);
    for (int d = 0; d < 2; ++d) {
      FASTSEG_CHECK(padding[d] >= 0, op, ": padding must not be negative, got ",
                    to_string(padding));
      FASTSEG_CHECK(padding[d] < kLimit, op, ": padding must be below 2^30, got ",
                    to_string(padding));
      FASTSEG_CHECK(2 * padding[d] <= dilation[d] * (kernel_size[d] - 1) + 1, op,
                    ": padding must be at most half of the dilated kernel, got padding ",
                    to_string(padding), ", kernel_size ", to_string(kernel_size), " and dilation ",
                    to_string(dilation));
    }
    FASTSEG_CHECK(
        kernel_size[0] <= 256 && kernel_size[1] <= 256 && kernel_size[0] * kernel_size[1] <= 256,
        op, ": kernel_size ", to_string(kernel_size),
        " has more than the 256 positions that a uint8 code can tell apart");
  }

  Pool2d geometry(int64_t height, int64_t width, int64_t pooled_height,
                  int64_t pooled_width) const {
    return {axis(0, height, pooled_height), axis(1, width, pooled_width)};
  }

  // torch's pooled size; an error where it is not positive.
  Pool2d pooled(const char* op, int64_t height, int64_t width, bool ceil_mode) const {
    const Pool2d pool =
        geometry(height, width, windows(0, height, ceil_mode), windows(1, width, ceil_mode));
    FASTSEG_CHECK(pool.h.windows > 0 && pool.w.windows > 0, op, ": x of ", height, " x ", width,
                  " is too small for kernel_size ", to_string(kernel_size), ", padding ",
                  to_string(padding), " and dilation ", to_string(dilation));
    return pool;
  }

 private:
  static constexpr int64_t kLimit = int64_t{1} << 30;  // the kernels keep all of these in int

  static IntPair pair(const char* op, const char* name, const std::vector<int64_t>& v) {
    FASTSEG_CHECK(v.size() == 1 || v.size() == 2, op, ": ", name,
                  " must be one integer or two, got ", to_string(v));
    return {v.front(), v.back()};
  }
  static void check_positive(const char* op, const char* name, const IntPair& v) {
    FASTSEG_CHECK(v[0] > 0 && v[1] > 0 && v[0] < kLimit && v[1] < kLimit, op, ": ", name,
                  " must be positive and below 2^30, got ", to_string(v));
  }
  PoolAxis axis(int d, int64_t size, int64_t windows) const {
    return {size,
            windows,
            static_cast<int>(kernel_size[d]),
            static_cast<int>(stride[d]),
            static_cast<int>(padding[d]),
            static_cast<int>(dilation[d])};
  }
  int64_t windows(int d, int64_t size, bool ceil_mode) const {
    const int64_t room = size + 2 * padding[d] - dilation[d] * (kernel_size[d] - 1) - 1;
    if (room < 0 && !(ceil_mode && room + stride[d] > 0)) return 0;
    int64_t n = (room + (ceil_mode ? stride[d] - 1 : 0)) / stride[d] + 1;
    // With ceil_mode the last window must start inside the input or its left padding.
    if (ceil_mode && (n - 1) * stride[d] >= size + padding[d]) --n;
    return n;
  }
};

// An (N, C, H, W) tensor, or (C, H, W) without N, which may lack channels where torch's may.
inline void check_image(const Tensor& x, const char* op, const char* name,
                        bool may_lack_channels = false) {
  const int64_t dim = x.dim();
  FASTSEG_CHECK(dim == 3 || dim == 4, op, ": ", name,
                " must be (N, C, H, W) or (C, H, W), got shape ", to_string(x.sizes()));
  const bool has_channels = x.size(dim - 3) > 0 || (may_lack_channels && dim == 3);
  FASTSEG_CHECK(x.size(dim - 1) > 0 && x.size(dim - 2) > 0 && has_channels, op, ": ", name,
                " must not be empty but for the batch, got shape ", to_string(x.sizes()));
}

// The sizes of x with its plane replaced.
inline std::vector<int64_t> with_plane(const Tensor& x, int64_t height, int64_t width) {
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size[size.size() - 2] = height;
  size[size.size() - 1] = width;
  return size;
}

inline int64_t batch_of(const Tensor& x) { return x.dim() == 4 ? x.size(0) : 1; }
inline int64_t channels_of(const Tensor& x) { return x.size(x.dim() - 3); }
inline int64_t height_of(const Tensor& x) { return x.size(x.dim() - 2); }
inline int64_t width_of(const Tensor& x) { return x.size(x.dim() - 1); }

}  // namespace fastseg
