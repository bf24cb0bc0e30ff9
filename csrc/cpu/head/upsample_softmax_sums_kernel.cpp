// Sums of the classes' probabilities over the pixels of bilinearly upsampled logits, over those of
// the class, and the gradient of both.
//
// Tasks are bands of rows, and a block of cells (bilinear_cells.h) has its loop over classes
// outermost. Operations for a pixel and a class: interpolation 2 or 3 and a power of two 11, in two
// passes each way; the first finds s of softmax_cells.h, or a pixel's mean gradient.
//
// With a[k] and b[k] the gradients of class k's sum and intersection, the gradient of a probability
// is g[k] = a[k] + (k == t) * b[k], or 2 * p[k] * a[k] + ... of squares, and that of a logit
// p[k] * (g[k] - sum over j of p[j] * g[j]).

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/head/band_sums.h"
#include "cpu/head/pixel_cells.h"
#include "cpu/head/softmax_cells.h"
#include "cpu/head/upsample_softmax_sums.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// What both directions know of a block: the probabilities of its pixels that count.
template <class T>
class Block {
 public:
  using F = Compute<T>;
  using V = Vector<F>;
  static constexpr int L = kLanes<T>;

  explicit Block(const SoftmaxSums<T>& of)
      : cells(*of.logits.cells),
        classes(of.logits.classes),
        slots(cells.block_slots()),
        planes(classes * kCorners * L),
        softmax(of.logits, planes.data()),
        targets(of.target, cells, classes),
        normalizer(kMostRows * slots) {}

  // Calls body(slot, p, here) for all phases of all rows, and end_row(row) after each; `here` says
  // where k is the target, and is false for all unless kTarget.
  template <bool kTarget, class Body, class End>
  void for_class(const BilinearBand& band, int64_t k, const Body& body, const End& end_row) const {
    const auto code = Simd<F>::fill_code(static_cast<int>(k));
    V a, b;
    for (int64_t y = band.begin; y < band.end; ++y) {
      const CellRow<F> row = softmax.row(y);
      const int64_t at = (y - band.begin) * slots;
      const auto* codes = targets.row(y - band.begin);
      row.sides(k, a, b);
      for (int p = 0; p < cells.phases; ++p) {
        const V w0 = Simd<F>::load(row.w0 + p * L), w1 = Simd<F>::load(row.w1 + p * L);
        const int64_t slot = at + p * L;
        const V x = w0 * a + (w1 * b + Simd<F>::load(normalizer.data() + slot));
        Codes<F> here{};
        if constexpr (kTarget) here = read<Codes<F>>(codes + p * L) == code;
        body(slot, exp2_of_minus<F>(x, F(1)), here, w0, w1);
      }
      end_row(row);
    }
  }

  // Takes pixels that do not count out of a row's normalizer. Returns 0, or what is undefined of
  // the others.
  V mask(int64_t row, F* undefined) {
    V all{};
    for (int64_t i = 0; i < slots; i += L) {
      F* at = normalizer.data() + row * slots + i;
      const Codes<F> none = read<Codes<F>>(targets.row(row) + i) < 0;
      const V s = Simd<F>::load(at);
      const V bad = none ? V{} : s - s;
      Simd<F>::store(at, none ? Simd<F>::fill(kNoPixel<F>) : s);
      if (undefined) Simd<F>::store(undefined + i, bad);
      all += bad;
    }
    return all;
  }

  const BilinearCells<F>& cells;
  const int64_t classes, slots;
  std::vector<F> planes;
  SoftmaxCells<T> softmax;
  TargetCells<F> targets;
  std::vector<F> normalizer;  // [row][phase][lane]
};

template <class T>
class Forward {
 public:
  using F = Compute<T>;
  using V = Vector<F>;
  static constexpr int L = kLanes<T>;

  explicit Forward(const SoftmaxSumsForward<T>& job) : job_(job), block_(job.of) {}

  void run(int64_t n, const BilinearBand& band, double* sums) {
    std::fill_n(sums, 3 * block_.classes, 0.0);
    block_.targets.load(n, band);
    const TargetMap& map = job_.of.target;
    for (int64_t i = 0; i < block_.cells.blocks; ++i) {
      const bool counts = block_.targets.select(i);
      if (counts) block_.softmax.load(n, band, i);
      V undefined{};
      for (int64_t y = band.begin; y < band.end; ++y) {
        F* s = block_.normalizer.data() + (y - band.begin) * block_.slots;
        counts ? block_.softmax.normalize(block_.softmax.row(y), s)
               : static_cast<void>(std::fill_n(s, block_.slots, F(0)));
        const PixelRun<F> run(block_.cells, i);
        run.gather(s, job_.normalizer + (n * map.height + y) * map.width);
        if (counts) undefined += block_.mask(y - band.begin, nullptr);
      }
      if (!counts) continue;
      for (int64_t k = 0; k < block_.classes; ++k) {
        if (block_.targets.has(k)) {
          add<true>(band, k, undefined, sums);
        } else {
          add<false>(band, k, undefined, sums);
        }
      }
    }
  }

 private:
  template <bool kTarget>
  void add(const BilinearBand& band, int64_t k, V undefined, double* sums) {
    V total = undefined, hit = undefined, count{};
    const auto end_row = [](const CellRow<F>&) {};
    const V one = Simd<F>::fill(1);
    const bool squared = job_.of.squared;
    block_.template for_class<kTarget>(
        band, k,
        [&](int64_t, V p, Codes<F> here, V, V) {
          total += squared ? p * p : p;
          if constexpr (kTarget) hit += here ? p : V{}, count += here ? one : V{};
        },
        end_row);
    const int64_t classes = block_.classes;
    for (int i = 0; i < L; ++i) {
      sums[k] += hit[i], sums[classes + k] += total[i], sums[2 * classes + k] += count[i];
    }
  }

  const SoftmaxSumsForward<T>& job_;
  Block<T> block_;
};

template <class T>
class Backward {
 public:
  using F = Compute<T>;
  using V = Vector<F>;
  static constexpr int L = kLanes<T>;

  explicit Backward(const SoftmaxSumsBackward<T>& job)
      : job_(job), block_(job.of), mean_(kMostRows * block_.slots) {}

  void run(int64_t n, const BilinearBand& band, F* sums) {
    BandSums<F> band_sums(block_.cells, block_.classes, job_.of.logits.width, sums);
    block_.targets.load(n, band);
    const F* of_sum = job_.probability + n * block_.classes;
    const F* of_hit = job_.intersection + n * block_.classes;
    for (int64_t i = 0; i < block_.cells.blocks; ++i) {
      if (!block_.targets.select(i)) continue;
      block_.softmax.load(n, band, i);
      const PixelRun<F> run(block_.cells, i);
      for (int64_t y = band.begin; y < band.end; ++y) {
        const int64_t row = y - band.begin;
        F* s = block_.normalizer.data() + row * block_.slots;
        run.scatter(job_.normalizer.row(n, y), job_.normalizer.stride_w, s);
        block_.mask(row, mean_.data() + row * block_.slots);
      }
      for (int64_t k = 0; k < block_.classes; ++k) {
        visit(k, [&]<bool kTarget, bool kSquared>(Form<kTarget, kSquared>) {
          add_mean<kTarget, kSquared>(band, k, of_sum[k], of_hit[k]);
        });
      }
      band_sums.start_block(i);
      for (int64_t k = 0; k < block_.classes; ++k) {
        V corners[kCorners] = {};
        visit(k, [&]<bool kTarget, bool kSquared>(Form<kTarget, kSquared>) {
          add_corners<kTarget, kSquared>(band, k, of_sum[k], of_hit[k], corners);
        });
        band_sums.add(k, corners);
      }
    }
  }

 private:
  template <bool kTarget, bool kSquared>
  struct Form {};

  template <class Body>
  void visit(int64_t k, const Body& body) const {
    if (block_.targets.has(k)) {
      job_.of.squared ? body(Form<true, true>{}) : body(Form<true, false>{});
    } else {
      job_.of.squared ? body(Form<false, true>{}) : body(Form<false, false>{});
    }
  }

  // The gradient of class k's probability.
  template <bool kTarget, bool kSquared>
  static V grad(V p, Codes<F> here, F of_sum, F of_hit) {
    V g = kSquared ? p * (2 * of_sum) : Simd<F>::fill(of_sum);
    if constexpr (kTarget) g += here ? Simd<F>::fill(of_hit) : V{};
    return g;
  }

  template <bool kTarget, bool kSquared>
  void add_mean(const BilinearBand& band, int64_t k, F of_sum, F of_hit) {
    block_.template for_class<kTarget>(
        band, k,
        [&](int64_t slot, V p, Codes<F> here, V, V) {
          F* mean = mean_.data() + slot;
          const V g = grad<kTarget, kSquared>(p, here, of_sum, of_hit);
          Simd<F>::store(mean, Simd<F>::load(mean) + p * g);
        },
        [](const CellRow<F>&) {});
  }

  template <bool kTarget, bool kSquared>
  void add_corners(const BilinearBand& band, int64_t k, F of_sum, F of_hit, V* corners) const {
    V left{}, right{};
    block_.template for_class<kTarget>(
        band, k,
        [&](int64_t slot, V p, Codes<F> here, V w0, V w1) {
          const V g = grad<kTarget, kSquared>(p, here, of_sum, of_hit);
          const V q = p * (g - Simd<F>::load(mean_.data() + slot));
          left += w0 * q;
          right += w1 * q;
        },
        [&](const CellRow<F>& row) {
          add_row(row, left, right, corners);
          left = right = V{};
        });
  }

  const SoftmaxSumsBackward<T>& job_;
  Block<T> block_;
  std::vector<F> mean_;  // [row][phase][lane]
};

}  // namespace

template <class T>
void upsample_softmax_sums(const SoftmaxSumsForward<T>& job, int64_t begin, int64_t end) {
  Forward<T> task(job);
  const std::vector<BilinearBand>& bands = job.of.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  const int64_t size = 3 * job.of.logits.classes;
  for (int64_t t = begin; t < end; ++t) task.run(t / count, bands[t % count], job.sums + t * size);
}

template <class T>
void upsample_softmax_sums_backward(const SoftmaxSumsBackward<T>& job, int64_t begin, int64_t end) {
  Backward<T> task(job);
  const std::vector<BilinearBand>& bands = job.of.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  const int64_t size = 2 * job.of.logits.classes * job.of.logits.width;
  for (int64_t t = begin; t < end; ++t) task.run(t / count, bands[t % count], job.sums + t * size);
}

#define FASTSEG_INSTANTIATE(T)                                                         \
  template void upsample_softmax_sums(const SoftmaxSumsForward<T>&, int64_t, int64_t); \
  template void upsample_softmax_sums_backward(const SoftmaxSumsBackward<T>&, int64_t, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
