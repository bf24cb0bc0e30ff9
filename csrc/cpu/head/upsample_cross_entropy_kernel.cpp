// The cross-entropy of bilinearly upsampled logits.
//
// A task is a band of rows between two source rows, and goes along it by blocks of cells
// (bilinear_cells.h). Operations for a pixel and a class: interpolation 2, a power of two 11, and
// 4 / phases for the corners; a class that is a target in the block takes 6 more. Bytes: the logits
// twice, the targets, and one or two numbers for each pixel. No logits of full size.
//
// loss = map * ((1 - e) * weight[t] * nll(t) + e / C * sum over k of weight[k] * nll(k)) with
// nll(k) = (x[k] + s) * ln(2) (softmax_cells.h). The last sum is linear in the logits: it is that
// of the corners, interpolated.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/head/pixel_cells.h"
#include "cpu/head/softmax_cells.h"
#include "cpu/head/upsample_cross_entropy.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

template <class T>
class Task {
 public:
  using F = Compute<T>;
  using V = Vector<F>;
  static constexpr int L = kLanes<T>;

  explicit Task(const CrossEntropyForward<T>& job)
      : job_(job),
        cells_(*job.of.logits.cells),
        classes_(job.of.logits.classes),
        slots_(cells_.block_slots()),
        planes_((classes_ + 1) * kCorners * L),
        softmax_(job.of.logits, planes_.data()),
        targets_(job.of.target, cells_, classes_),
        normalizer_(slots_),
        loss_(slots_),
        weight_(slots_),
        map_(slots_) {
    for (int64_t k = 0; k < classes_; ++k) all_weights_ += weight_of(k);
  }

  CrossEntropySums run(int64_t n, const BilinearBand& band) {
    CrossEntropySums sums{0, 0};
    targets_.load(n, band);
    for (int64_t block = 0; block < cells_.blocks; ++block) {
      const bool any_target = targets_.select(block);
      if (any_target) {
        softmax_.load(n, band, block);
        if (job_.of.label_smoothing != 0) add_smoothing_plane();
      }
      for (int64_t y = band.begin; y < band.end; ++y) {
        if (any_target) {
          compute(n, y, y - band.begin, block, sums);
        } else {
          std::fill(normalizer_.begin(), normalizer_.end(), F(0));
          std::fill(loss_.begin(), loss_.end(), F(0));
        }
        write(n, y, block);
      }
    }
    return sums;
  }

 private:
  F weight_of(int64_t k) const { return job_.of.weight ? job_.of.weight[k] : F(1); }

  // After the classes' planes: their sum, each by its weight.
  void add_smoothing_plane() {
    for (int i = 0; i < kCorners; ++i) {
      V sum{};
      for (int64_t k = 0; k < classes_; ++k) {
        sum += weight_of(k) * Simd<F>::load(planes_.data() + (k * kCorners + i) * L);
      }
      Simd<F>::store(planes_.data() + (classes_ * kCorners + i) * L, sum);
    }
  }

  // A row of the block: normalizer_ and loss_, and its part of the sums.
  void compute(int64_t n, int64_t y, int64_t row, int64_t block, CrossEntropySums& sums) {
    const CellRow<F> cells = softmax_.row(y);
    const auto* codes = targets_.row(row);
    softmax_.normalize(cells, normalizer_.data());
    V a, b;
    for (const int64_t k : targets_.present()) {
      cells.sides(k, a, b);
      const auto code = Simd<F>::fill_code(static_cast<int>(k));
      const F scale = weight_of(k) * (1 - job_.of.label_smoothing) * kLn2<F>;
      for (int p = 0; p < cells_.phases; ++p) {
        const auto here = read<Codes<F>>(codes + p * L) == code;
        const V nll = (cells.value(p, a, b) + at(normalizer_, p)) * scale;
        set(loss_, p, here ? nll : at(loss_, p));
        set(weight_, p, here ? Simd<F>::fill(weight_of(k)) : at(weight_, p));
      }
    }
    const bool smooth = job_.of.label_smoothing != 0;
    const F smoothing = job_.of.label_smoothing / F(classes_) * kLn2<F>;
    if (smooth) cells.sides(classes_, a, b);
    for (int p = 0; p < cells_.phases; ++p) {
      const auto none = read<Codes<F>>(codes + p * L) < 0;
      V loss = at(loss_, p);
      if (smooth) loss += (cells.value(p, a, b) + all_weights_ * at(normalizer_, p)) * smoothing;
      set(loss_, p, none ? V{} : loss);
      set(weight_, p, none ? V{} : at(weight_, p));
    }
    if (job_.of.weight_map.data) {
      const PixelRun<F> run(cells_, block);
      run.scatter(job_.of.weight_map.row(n, y), job_.of.weight_map.stride_w, map_.data());
      for (int p = 0; p < cells_.phases; ++p) {
        const auto none = read<Codes<F>>(codes + p * L) < 0;
        set(loss_, p, none ? V{} : at(loss_, p) * at(map_, p));
        set(weight_, p, none ? V{} : at(weight_, p) * at(map_, p));
      }
    }
    sums.loss += sum_of(loss_);
    sums.weight += sum_of(weight_);
  }

  double sum_of(const std::vector<F>& slots) const {
    V sum{};
    for (int p = 0; p < cells_.phases; ++p) sum += at(slots, p);
    double total = 0;
    for (int i = 0; i < L; ++i) total += sum[i];
    return total;
  }

  void write(int64_t n, int64_t y, int64_t block) {
    const int64_t row = (n * job_.of.target.height + y) * job_.of.target.width;
    const PixelRun<F> run(cells_, block);
    run.gather(normalizer_.data(), job_.normalizer + row);
    if (job_.loss) run.gather(loss_.data(), job_.loss + row);
  }

  static V at(const std::vector<F>& slots, int phase) {
    return Simd<F>::load(slots.data() + phase * L);
  }
  static void set(std::vector<F>& slots, int phase, V v) {
    Simd<F>::store(slots.data() + phase * L, v);
  }

  const CrossEntropyForward<T>& job_;
  const BilinearCells<F>& cells_;
  const int64_t classes_, slots_;
  F all_weights_ = 0;
  std::vector<F> planes_;
  SoftmaxCells<T> softmax_;
  TargetCells<F> targets_;
  std::vector<F> normalizer_, loss_, weight_, map_;  // [phase][lane] of a row
};

}  // namespace

template <class T>
void upsample_cross_entropy(const CrossEntropyForward<T>& job, int64_t begin, int64_t end) {
  Task<T> task(job);
  const std::vector<BilinearBand>& bands = job.of.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  for (int64_t t = begin; t < end; ++t) job.sums[t] = task.run(t / count, bands[t % count]);
}

#define FASTSEG_INSTANTIATE(T) \
  template void upsample_cross_entropy(const CrossEntropyForward<T>&, int64_t, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
