#pragma once
// Argument checks and layout rules of the op bindings, shared by the CPU and the CUDA ones.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "common/message.h"

namespace fastseg {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError in Python with the message alone, where STD_TORCH_CHECK would put the path of
// this source before it.
#define FASTSEG_CHECK(condition, ...)                 \
  do {                                                \
    if (!(condition)) ::fastseg::fail({__VA_ARGS__}); \
  } while (false)

template <class T>
[[gnu::cold, gnu::noinline]] std::string list_to_string(const T* values, size_t count) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < count; ++i) out << (i ? ", " : "") << values[i];
  out << ')';
  return out.str();
}

template <class List>
std::string to_string(const List& values) {
  return list_to_string(values.data(), values.size());
}

// torch's suggest_memory_format for 4-D tensors: channels_last if the strides ascend in the order
// C, W, H, N. 3-D tensors are contiguous.
inline bool is_channels_last(const Tensor& x) {
  const auto size = x.sizes(), stride = x.strides();
  if (size.size() != 4 || stride[1] == 0) return false;
  int64_t smallest = 0;
  for (const int d : {1, 3, 2, 0}) {
    if (size[d] == 0 || stride[d] < smallest) return false;
    if (d == 0 && smallest == stride[1]) return false;  // N 1 1 1 and 1 C 1 1 are contiguous
    smallest = stride[d];
    if (size[d] > 1) smallest *= size[d];
  }
  return true;
}

// The strides of a dense tensor, as torch::empty gives them.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& size, bool channels_last) {
  const int dim = static_cast<int>(size.size());
  std::vector<int64_t> strides(dim);
  int64_t step = 1;
  const auto take = [&](int d) {
    strides[d] = step;
    step *= std::max<int64_t>(size[d], 1);
  };
  if (channels_last) {
    for (const int d : {1, 3, 2, 0}) take(d);
  } else {
    for (int d = dim - 1; d >= 0; --d) take(d);
  }
  return strides;
}

inline bool is_dense(const Tensor& x, bool channels_last) {
  if (!channels_last) return x.is_contiguous();
  const auto size = x.sizes(), stride = x.strides();
  int64_t step = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (size[d] != 1 && stride[d] != step) return false;
    step *= size[d];
  }
  return true;
}

// x itself where it is dense: the call through the dispatcher costs a microsecond.
inline Tensor dense(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  return torch::stable::contiguous(
      x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// An empty tensor on the device of `like`: where outputs come from (cpu/memory/outputs.cpp,
// cuda/outputs.cpp).
Tensor empty_strided_like(const Tensor& like, const std::vector<int64_t>& size,
                          const std::vector<int64_t>& strides, ScalarType dtype);

inline Tensor empty_like_layout(const Tensor& like, const std::vector<int64_t>& size,
                                ScalarType dtype, bool channels_last) {
  return empty_strided_like(like, size, dense_strides(size, channels_last), dtype);
}

inline bool is_supported_float(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_float(const Tensor& x, const char* op, const char* name) {
  FASTSEG_CHECK(is_supported_float(x.scalar_type()), op, ": ", name,
                " must be float32, float64, float16 or bfloat16, got ", x.scalar_type());
}

inline void check_float32(const Tensor& x, const char* op, const char* name) {
  FASTSEG_CHECK(x.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
                x.scalar_type());
}

inline void check_same_device(const Tensor& a, const char* a_name, const Tensor& b,
                              const char* b_name, const char* op) {
  FASTSEG_CHECK(a.device() == b.device(), op, ": ", a_name, " and ", b_name,
                " must be on one device");
}

}  // namespace fastseg
