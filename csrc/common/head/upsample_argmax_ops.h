#pragma once
// fastseg::upsample_argmax and fastseg::upsample_argmax_confidence but for the kernels, which the
// CPU and the CUDA bindings bring: arguments checked, outputs allocated.

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/head/logits_args.h"

namespace fastseg {

struct UpsampleArgmaxCall {
  const char* op;
  Tensor logits;  // (N, C, h, w) of any strides
  int64_t height, width;
  bool align_corners;
  Tensor classes;                    // (N, H, W)
  std::optional<Tensor> confidence;  // (N, H, W): double for double, float for all else
};

// Bytes of an id.
inline int id_bytes(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Short:
      return 2;
    case ScalarType::Int:
      return 4;
    default:
      return 8;
  }
}

using UpsampleArgmaxKernel = void (*)(const UpsampleArgmaxCall&);

namespace upsample_argmax_ops {

using Size = std::vector<int64_t>;

inline int64_t largest_id(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return std::numeric_limits<uint8_t>::max();
    case ScalarType::Short:
      return std::numeric_limits<int16_t>::max();
    case ScalarType::Int:
      return std::numeric_limits<int32_t>::max();
    case ScalarType::Long:
      return std::numeric_limits<int64_t>::max();
    default:
      FASTSEG_CHECK(false, op, ": dtype must be uint8, int16, int32 or int64, got ", dtype);
  }
}

template <UpsampleArgmaxKernel kernel>
UpsampleArgmaxCall run(const char* op, const Tensor& logits, const Size& size, bool align_corners,
                       ScalarType dtype, bool with_confidence) {
  check_logits(op, logits);
  const int64_t most = largest_id(op, dtype);
  FASTSEG_CHECK(logits.size(1) - 1 <= most, op, ": dtype ", dtype, " holds ids up to ", most,
                ", logits have ", logits.size(1), " classes");
  check_size(op, size);
  const Size shape{logits.size(0), size[0], size[1]};
  UpsampleArgmaxCall call{
      op,          logits,        size[0],
      size[1],     align_corners, empty_like_layout(logits, shape, dtype, false),
      std::nullopt};
  if (with_confidence) {
    const bool wide = logits.scalar_type() == ScalarType::Double;
    call.confidence =
        empty_like_layout(logits, shape, wide ? ScalarType::Double : ScalarType::Float, false);
  }
  kernel(call);
  return call;
}

template <UpsampleArgmaxKernel kernel>
Tensor upsample_argmax(const Tensor& logits, Size size, bool align_corners, ScalarType dtype) {
  return run<kernel>("fastseg::upsample_argmax", logits, size, align_corners, dtype, false).classes;
}

template <UpsampleArgmaxKernel kernel>
std::tuple<Tensor, Tensor> upsample_argmax_confidence(const Tensor& logits, Size size,
                                                      bool align_corners, ScalarType dtype) {
  const auto call =
      run<kernel>("fastseg::upsample_argmax_confidence", logits, size, align_corners, dtype, true);
  return {call.classes, *call.confidence};
}

}  // namespace upsample_argmax_ops
}  // namespace fastseg
