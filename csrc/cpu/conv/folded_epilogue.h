#pragma once
// The epilogue of a convolution from the tensors of its op.

#include <optional>
#include <vector>

#include "common/conv/conv2d_args.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {

// A tensor's elements in F.
template <class F>
std::vector<F> elements(const Tensor& t) {
  const Tensor contiguous = dense(t, false);
  std::vector<F> out(contiguous.numel());
  dispatch_float(t.scalar_type(), [&](auto zero) {
    const auto* from = static_cast<const decltype(zero)*>(contiguous.const_data_ptr());
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<F>(from[i]);
  });
  return out;
}

// Holds what a Conv2dEpilogue points to: scale and, in one vector, bias * scale + shift.
template <class T>
class FoldedEpilogue {
 public:
  using F = typename Conv2dEpilogue<T>::F;

  // The tensors are checked; `residual` has the output's layout.
  FoldedEpilogue(const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& shift, const std::optional<Tensor>& residual,
                 Activation activation)
      : scale_(values(scale)), shift_(values(shift)), residual_(residual) {
    const std::vector<F> extra = values(bias);
    shift_.resize(std::max(shift_.size(), extra.size()));
    for (size_t c = 0; c < extra.size(); ++c) {
      shift_[c] += scale_.empty() ? extra[c] : extra[c] * scale_[c];
    }
    epilogue_.scale = scale_.empty() ? nullptr : scale_.data();
    epilogue_.shift = shift_.empty() ? nullptr : shift_.data();
    epilogue_.residual = residual_ ? static_cast<const T*>(residual_->const_data_ptr()) : nullptr;
    epilogue_.activation = activation;
  }
  FoldedEpilogue(const FoldedEpilogue&) = delete;
  FoldedEpilogue& operator=(const FoldedEpilogue&) = delete;

  const Conv2dEpilogue<T>& get() const { return epilogue_; }

 private:
  static std::vector<F> values(const std::optional<Tensor>& t) {
    return t ? elements<F>(*t) : std::vector<F>();
  }

  std::vector<F> scale_, shift_;
  std::optional<Tensor> residual_;
  Conv2dEpilogue<T> epilogue_;
};

}  // namespace fastseg::cpu
