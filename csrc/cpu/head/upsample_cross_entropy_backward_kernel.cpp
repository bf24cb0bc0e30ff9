// The gradient of the cross-entropy of bilinearly upsampled logits: a gather, without atomics.
//
// A task is a band of rows between two source rows. In a block of cells (bilinear_cells.h) the
// loop over classes is the outer one: the class's corners and their gradients stay in registers,
// and what is known of a pixel in the first cache. Operations for a pixel and a class:
// interpolation 3, a power of two 11, gradients 3 and (8 + 4) / phases; 2 more for a class that is
// a target in the block. Bytes: the logits twice, targets, normalizers and gradients of the pixels,
// and two source rows a band.
//
// d loss / d z[k] = p[k] * (h + e / C * u * (sum of weights)) - (k == t) * h - e / C * weight[k] *
// u with u = grad * map and h = (1 - e) * weight[t] * u. The last term is the same for all classes
// but for a factor, and is summed once.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/head/band_sums.h"
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

  explicit Task(const CrossEntropyBackward<T>& job)
      : job_(job),
        cells_(*job.of.logits.cells),
        classes_(job.of.logits.classes),
        slots_(cells_.block_slots()),
        planes_(classes_ * kCorners * L),
        softmax_(job.of.logits, planes_.data()),
        targets_(job.of.target, cells_, classes_),
        normalizer_(kMostRows * slots_),
        of_softmax_(kMostRows * slots_),
        of_target_(kMostRows * slots_),
        of_all_(kMostRows * slots_),
        map_(slots_) {
    for (int64_t k = 0; k < classes_; ++k) all_weights_ += weight_of(k);
  }

  void run(int64_t n, const BilinearBand& band, F* sums) {
    BandSums<F> band_sums(cells_, classes_, job_.of.logits.width, sums);
    targets_.load(n, band);
    for (int64_t block = 0; block < cells_.blocks; ++block) {
      if (!targets_.select(block)) continue;
      softmax_.load(n, band, block);
      load_pixels(n, band, block);
      band_sums.start_block(block);
      V smooth[kCorners] = {};
      if (job_.of.label_smoothing != 0) sum_of_all(band, smooth);
      for (int64_t k = 0; k < classes_; ++k) {
        V corners[kCorners] = {};
        targets_.has(k) ? sum_class<true>(band, k, corners) : sum_class<false>(band, k, corners);
        for (int i = 0; i < kCorners; ++i) corners[i] -= weight_of(k) * smooth[i];
        band_sums.add(k, corners);
      }
    }
  }

 private:
  F weight_of(int64_t k) const { return job_.of.weight ? job_.of.weight[k] : F(1); }

  void load_pixels(int64_t n, const BilinearBand& band, int64_t block) {
    const PixelRun<F> run(cells_, block);
    const PixelMap<F>& map = job_.of.weight_map;
    for (int64_t y = band.begin; y < band.end; ++y) {
      const int64_t at = (y - band.begin) * slots_;
      const auto* codes = targets_.row(y - band.begin);
      F *s = normalizer_.data() + at, *u = of_all_.data() + at;
      run.scatter(job_.normalizer.row(n, y), job_.normalizer.stride_w, s);
      const F* grad = job_.grad.row(n, y);
      if (job_.grad.stride_w == 0) {
        std::fill_n(u, slots_, *grad);
      } else {
        run.scatter(grad, job_.grad.stride_w, u);
      }
      if (map.data) run.scatter(map.row(n, y), map.stride_w, map_.data());
      for (int64_t i = 0; i < slots_; i += L) {
        const V of_pixel = map.data ? Simd<F>::load(map_.data() + i) : Simd<F>::fill(1);
        load_vector(read<Codes<F>>(codes + i), at + i, of_pixel);
      }
    }
  }

  // From a pixel's s and gradient to the three factors of its probabilities' gradients.
  void load_vector(Codes<F> code, int64_t slot, V of_pixel) {
    const F e = job_.of.label_smoothing, each = e / F(classes_);
    const Codes<F> none = code < 0;
    const V s = Simd<F>::load(normalizer_.data() + slot);
    const V u = Simd<F>::load(of_all_.data() + slot) * of_pixel;
    V of_target = (1 - e) * u;
    if (job_.of.weight) {
      V weight{};
      for (int i = 0; i < L; ++i) weight[i] = code[i] < 0 ? F(0) : job_.of.weight[code[i]];
      of_target *= weight;
    }
    // A power of an undefined number is 0: the factor carries it on.
    const V of_softmax = of_target + all_weights_ * each * u + (s - s);
    Simd<F>::store(normalizer_.data() + slot, none ? Simd<F>::fill(kNoPixel<F>) : s);
    Simd<F>::store(of_target_.data() + slot, none ? V{} : of_target);
    Simd<F>::store(of_softmax_.data() + slot, none ? V{} : of_softmax);
    Simd<F>::store(of_all_.data() + slot, none ? V{} : each * u);
  }

  // The gradient of class k at the block's corners but for the smoothing's last term.
  template <bool kTarget>
  void sum_class(const BilinearBand& band, int64_t k, V* corners) const {
    const auto code = Simd<F>::fill_code(static_cast<int>(k));
    V a, b;
    for (int64_t y = band.begin; y < band.end; ++y) {
      const CellRow<F> row = softmax_.row(y);
      const int64_t at = (y - band.begin) * slots_;
      const auto* codes = targets_.row(y - band.begin);
      row.sides(k, a, b);
      V left{}, right{};
      for (int p = 0; p < cells_.phases; ++p) {
        const V w0 = Simd<F>::load(row.w0 + p * L), w1 = Simd<F>::load(row.w1 + p * L);
        const int64_t slot = at + p * L;
        const V x = w0 * a + (w1 * b + Simd<F>::load(normalizer_.data() + slot));
        V g = exp2_of_minus<F>(x, F(1)) * Simd<F>::load(of_softmax_.data() + slot);
        if constexpr (kTarget) {
          const auto here = read<Codes<F>>(codes + p * L) == code;
          g -= here ? Simd<F>::load(of_target_.data() + slot) : V{};
        }
        left += w0 * g;
        right += w1 * g;
      }
      add_row(row, left, right, corners);
    }
  }

  void sum_of_all(const BilinearBand& band, V* corners) const {
    for (int64_t y = band.begin; y < band.end; ++y) {
      const CellRow<F> row = softmax_.row(y);
      V left{}, right{};
      for (int p = 0; p < cells_.phases; ++p) {
        const V g = Simd<F>::load(of_all_.data() + (y - band.begin) * slots_ + p * L);
        left += Simd<F>::load(row.w0 + p * L) * g;
        right += Simd<F>::load(row.w1 + p * L) * g;
      }
      add_row(row, left, right, corners);
    }
  }

  const CrossEntropyBackward<T>& job_;
  const BilinearCells<F>& cells_;
  const int64_t classes_, slots_;
  F all_weights_ = 0;
  std::vector<F> planes_;
  SoftmaxCells<T> softmax_;
  TargetCells<F> targets_;
  std::vector<F> normalizer_, of_softmax_, of_target_, of_all_;  // [row][phase][lane]
  std::vector<F> map_;                                           // [phase][lane]
};

}  // namespace

template <class T>
void upsample_cross_entropy_backward(const CrossEntropyBackward<T>& job, int64_t begin,
                                     int64_t end) {
  Task<T> task(job);
  const std::vector<BilinearBand>& bands = job.of.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  const int64_t size = 2 * job.of.logits.classes * job.of.logits.width;
  for (int64_t t = begin; t < end; ++t) task.run(t / count, bands[t % count], job.sums + t * size);
}

#define FASTSEG_INSTANTIATE(T) \
  template void upsample_cross_entropy_backward(const CrossEntropyBackward<T>&, int64_t, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
