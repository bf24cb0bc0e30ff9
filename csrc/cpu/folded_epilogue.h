#pragma once
// The epilogue of a convolution from the tensors of its op.

#include <optional>
#include <vector>

#include "common/conv2d_args.h"

namespace fastseg::cpu {

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
    if (!t) return {};
    constexpr ScalarType kDtype = sizeof(F) == 8 ? ScalarType::Double : ScalarType::Float;
    const Tensor dense_t =
        dense(t->scalar_type() == kDtype ? *t : torch::stable::to(*t, kDtype), false);
    const F* p = static_cast<const F*>(dense_t.const_data_ptr());
    return std::vector<F>(p, p + t->numel());
  }

  std::vector<F> scale_, shift_;
  std::optional<Tensor> residual_;
  Conv2dEpilogue<T> epilogue_;
};

}  // namespace fastseg::cpu
