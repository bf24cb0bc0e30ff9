#pragma once
// What max_unpool2d, its backward and max_pool2d_backward have in common: a pooled tensor, a plane
// tensor and the codes (or int64 indices) between them.

#include <cstdint>
#include <optional>
#include <vector>

#include "common/pool/packed_codes.h"
#include "common/pool/pool2d_args.h"

namespace fastseg {

// The dimension along which four codes share a byte (packed_codes.h); 0: a code has its own byte.
inline constexpr int64_t kNotPacked = 0, kPackedAlongW = -1, kPackedAlongC = -3;

struct UnpoolArgs {
  const char* op;
  Tensor indices;  // dense in the layout below
  bool packed;
  bool by_code;
  bool channels_last;
  Pool2d pool;
  int64_t batch, channels;

  // `image` is the op's other tensor: pooled values, or a gradient of the plane's or the pooled
  // size. Exactly its batch and channels count here.
  UnpoolArgs(const char* op_name, const Tensor& image, const char* image_name,
             const Tensor& index_tensor, const Pool2dArgs& args, int64_t height, int64_t width,
             int64_t pooled_height, int64_t pooled_width, int64_t packed_dim)
      : op(op_name),
        packed(packed_dim != kNotPacked),
        by_code(index_tensor.scalar_type() == ScalarType::Byte),
        batch(batch_of(image)),
        channels(channels_of(image)) {
    FASTSEG_CHECK(by_code || index_tensor.scalar_type() == ScalarType::Long, op,
                  ": indices must be uint8 codes or int64 flat indices, got ",
                  index_tensor.scalar_type());
    check_same_device(image, image_name, index_tensor, "indices", op);
    FASTSEG_CHECK(height > 0 && width > 0, op, ": the plane must not be empty, got ", height, " x ",
                  width);
    pool = args.geometry(height, width, pooled_height, pooled_width);
    std::vector<int64_t> expected = with_plane(image, pooled_height, pooled_width);
    if (packed) {
      FASTSEG_CHECK(
          packed_dim == kPackedAlongW || (packed_dim == kPackedAlongC && image.dim() == 4), op,
          ": packed_dim must be 0, -1 or, for 4-D codes, -3, got ", packed_dim);
      FASTSEG_CHECK(by_code && pool.packable(), op,
                    ": packed codes belong to 2x2 windows with stride 2");
      int64_t& size = expected[expected.size() + packed_dim];
      size = packed_size(size);
      channels_last = packed_dim == kPackedAlongC;
      if (channels_last && channels == 1) packed = false;  // each code has a byte of its own
    } else {
      channels_last = is_channels_last(index_tensor);
    }
    FASTSEG_CHECK(
        std::vector<int64_t>(index_tensor.sizes().begin(), index_tensor.sizes().end()) == expected,
        op, ": indices must have shape ", to_string(expected), " for ", image_name, " of shape ",
        to_string(image.sizes()), ", got ", to_string(index_tensor.sizes()));
    if (by_code && batch > 0) check_reach(pool.h, "height"), check_reach(pool.w, "width");
    indices = dense(index_tensor, channels_last);
  }

  int64_t lanes() const { return channels_last ? channels : 1; }
  int64_t planes() const { return channels_last ? batch : batch * channels; }

 private:
  // Every window must have a tap in the plane, else its code cannot be right.
  void check_reach(const PoolAxis& axis, const char* name) const {
    FASTSEG_CHECK(axis.windows == 0 || axis.start(axis.windows - 1) < axis.size, op,
                  ": the plane's ", name, " ", axis.size, " ends before the last of ", axis.windows,
                  " windows, which starts at ", axis.start(axis.windows - 1));
  }
};

}  // namespace fastseg
