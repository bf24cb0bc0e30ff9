#pragma once
// The sizes of a convolution whose gradients are computed, and which outputs a tap reads inside of
// x for. Without torch.

#include <algorithm>
#include <array>
#include <cstdint>

#include "common/ceil_divide.h"

namespace fastseg::cpu {

using PerAxis = std::array<int64_t, 2>;  // vertical, horizontal

struct Conv2dGradShape {
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  PerAxis size, output_size;                         // of x and of grad
  PerAxis kernel_size, stride, padding, dilation;

  int64_t taps() const { return kernel_size[0] * kernel_size[1]; }

  // A packed row of x holds the columns of one residue modulo the stride after the other: those
  // that a tap reads are neighbours whatever the stride.
  int64_t residues() const { return std::min(stride[1], size[1]); }
  int64_t residue_columns() const { return (size[1] + stride[1] - 1) / stride[1]; }
  int64_t packed_columns() const { return residues() * residue_columns(); }
  int64_t packed_column(int64_t column) const {
    return column % stride[1] * residue_columns() + column / stride[1];
  }

  int64_t packed_plane() const { return size[0] * packed_columns(); }
  int64_t output_plane() const { return output_size[0] * output_size[1]; }
  int64_t x_pixels() const { return batch * packed_plane(); }
  int64_t grad_pixels() const { return batch * output_plane(); }
};

// The outputs [begin, end) along an axis whose tap reads o * stride + offset inside of x.
struct LiveOutputs {
  int64_t offset, begin, end;

  LiveOutputs(const Conv2dGradShape& s, int axis, int64_t tap)
      : offset(tap * s.dilation[axis] - s.padding[axis]),
        begin(offset < 0 ? ceil_divide(-offset, s.stride[axis]) : 0) {
    const int64_t room = s.size[axis] - offset;
    end = std::min(s.output_size[axis], room > 0 ? ceil_divide(room, s.stride[axis]) : 0);
  }
};

}  // namespace fastseg::cpu
