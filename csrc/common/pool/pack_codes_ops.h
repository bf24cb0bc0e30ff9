#pragma once
// fastseg::pack_codes but for the kernel, which the CPU and the CUDA bindings bring.

#include <cstdint>
#include <vector>

#include "common/pool/max_unpool2d_args.h"

namespace fastseg {

// Packs `runs` runs of `run` codes; each run starts on a byte of its own.
using PackKernel = void (*)(const Tensor& codes, int64_t runs, int64_t run, const Tensor& out);

namespace pack_codes_ops {

template <PackKernel kernel>
Tensor pack_codes(const Tensor& codes, int64_t packed_dim) {
  constexpr const char* op = "fastseg::pack_codes";
  const int64_t dim = codes.dim();
  FASTSEG_CHECK((dim == 3 || dim == 4) && codes.scalar_type() == ScalarType::Byte, op,
                ": codes must be a uint8 tensor of 3 or 4 dimensions, got shape ",
                to_string(codes.sizes()), " and dtype ", codes.scalar_type());
  FASTSEG_CHECK(packed_dim == kPackedAlongW || (packed_dim == kPackedAlongC && dim == 4), op,
                ": packed_dim must be -1 or, for 4-D codes, -3, got ", packed_dim);
  const bool channels_last = packed_dim == kPackedAlongC;
  std::vector<int64_t> size(codes.sizes().begin(), codes.sizes().end());
  const int64_t run = size[dim + packed_dim];
  size[dim + packed_dim] = packed_size(run);
  const Tensor out = empty_like_layout(codes, size, ScalarType::Byte, channels_last);
  kernel(dense(codes, channels_last), run > 0 ? codes.numel() / run : 0, run, out);
  return out;
}

}  // namespace pack_codes_ops
}  // namespace fastseg
