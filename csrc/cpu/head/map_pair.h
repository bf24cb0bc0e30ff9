#pragma once
// Two label maps of one shape, whatever their strides: runs of pixels that lie evenly in both.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fastseg::cpu {

class MapPair {
 public:
  // All vectors are as long. Strides are those of torch, not negative.
  template <class Ints>
  MapPair(const Ints& sizes, const Ints& prediction_strides, const Ints& target_strides) {
    for (size_t d = 0; d < sizes.size(); ++d) {
      pixels_ *= sizes[d];
      if (sizes[d] != 1) axes_.push_back({sizes[d], prediction_strides[d], target_strides[d]});
    }
    // A count does not depend on the order of the pixels, which may be that of the memory.
    std::stable_sort(axes_.begin(), axes_.end(), [](const Axis& a, const Axis& b) {
      return std::pair(a.prediction, a.target) > std::pair(b.prediction, b.target);
    });
    size_t kept = 0;
    for (size_t d = 1; d < axes_.size(); ++d) {
      Axis &outer = axes_[kept], inner = axes_[d];
      if (outer.prediction == inner.prediction * inner.size &&
          outer.target == inner.target * inner.size) {
        outer = {outer.size * inner.size, inner.prediction, inner.target};
      } else {
        axes_[++kept] = inner;
      }
    }
    axes_.resize(axes_.empty() ? 0 : kept + 1);
    if (axes_.empty()) axes_.push_back({1, 1, 1});
  }

  int64_t pixels() const { return pixels_; }

  // Of neighbours in a run, in elements.
  int64_t prediction_stride() const { return axes_.back().prediction; }
  int64_t target_stride() const { return axes_.back().target; }

  // Calls body(prediction offset, target offset, length) for the runs of pixels [begin, end).
  template <class Body>
  void for_runs(int64_t begin, int64_t end, const Body& body) const {
    const Axis& along = axes_.back();
    for (int64_t i = begin; i < end;) {
      const int64_t first = i % along.size;
      const int64_t length = std::min(along.size - first, end - i);
      int64_t prediction = first * along.prediction, target = first * along.target;
      int64_t rest = i / along.size;
      for (size_t d = axes_.size() - 1; d-- > 0; rest /= axes_[d].size) {
        const int64_t k = rest % axes_[d].size;
        prediction += k * axes_[d].prediction;
        target += k * axes_[d].target;
      }
      body(prediction, target, length);
      i += length;
    }
  }

 private:
  struct Axis {
    int64_t size, prediction, target;
  };
  std::vector<Axis> axes_;  // the fastest last; none of size 1, none that continues the next
  int64_t pixels_ = 1;
};

}  // namespace fastseg::cpu
