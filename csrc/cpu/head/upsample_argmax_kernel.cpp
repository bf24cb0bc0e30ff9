// The class map of bilinearly upsampled logits.
//
// A task is a band of rows between two source rows. It goes along the row by blocks of cells
// (bilinear_cells.h), whose corners' logits stay in the first cache for all rows of the band.
// Operations for a pixel and a class: interpolation 2, comparison and choice 3, and 4 / phases for
// the corners; an exponential where the confidence is asked for. Bytes: the logits twice, the ids.
//
// A class whose largest corner lies below another's smallest corner wins nowhere in the cells
// between: where a network is sure, one or two classes of 21 are left.

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/head/cell_planes.h"
#include "cpu/head/cell_row.h"
#include "cpu/head/upsample_argmax.h"
#include "cpu/simd/simd_any.h"
#include "cpu/simd/simd_exp.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

template <class F>
struct Best {
  Vector<F> value;
  Codes<F> id;
};

// The largest value of `count` classes in Q phases from `phase` on; the first of equal ones, and an
// undefined one before all others.
template <bool kFinite, int Q, class F>
void find_best(const CellRow<F>& row, int phase, const int32_t* ids, int64_t count, Best<F>* best) {
  Vector<F> a, b, value[Q];
  Codes<F> id[Q];
  row.sides(ids[0], a, b);
  for (int q = 0; q < Q; ++q) {
    value[q] = row.value(phase + q, a, b);
    id[q] = Simd<F>::fill_code(ids[0]);
  }
  for (int64_t i = 1; i < count; ++i) {
    row.sides(ids[i], a, b);
    const Codes<F> code = Simd<F>::fill_code(ids[i]);
    for (int q = 0; q < Q; ++q) {
      const Vector<F> v = row.value(phase + q, a, b);
      Codes<F> better = v > value[q];
      if constexpr (!kFinite) better |= (v != v) & (value[q] == value[q]);
      value[q] = better ? v : value[q];
      id[q] = better ? code : id[q];
    }
  }
  for (int q = 0; q < Q; ++q) best[phase + q] = {value[q], id[q]};
}

// The softmax of the best class among all.
template <class F>
void find_confidence(const CellRow<F>& row, int phases, int64_t classes, const Best<F>* best,
                     F* confidence) {
  using V = Vector<F>;
  V sum[kMostPhases] = {}, a, b;
  for (int64_t k = 0; k < classes; ++k) {
    row.sides(k, a, b);
    for (int p = 0; p < phases; ++p) {
      sum[p] += exp_of_minus<F>(best[p].value - row.value(p, a, b));
    }
  }
  for (int p = 0; p < phases; ++p) {
    const V zero = best[p].value - best[p].value;  // undefined where the softmax is
    Simd<F>::store(confidence + p * kLanes<F>, zero + F(1) / sum[p]);
  }
}

// What a block's corners say of its classes.
template <class F>
struct Extremes {
  using V = Vector<F>;

  V bound = Simd<F>::fill(-std::numeric_limits<F>::max());  // the largest of the least corners
  V largest{};                                              // in absolute value
  F* high;                                                  // the largest corners: [class][lane]

  void operator()(int64_t k, const std::array<V, kCorners>& c) {
    const auto least = [](V a, V b) { return a < b ? a : b; };
    const auto most = [](V a, V b) { return a > b ? a : b; };
    const V low_corner = least(least(c[0], c[1]), least(c[2], c[3]));
    const V high_corner = most(most(c[0], c[1]), most(c[2], c[3]));
    bound = most(bound, low_corner);
    largest = most(largest, most(high_corner, -low_corner));
    write(high + k * kLanes<F>, high_corner);
  }
};

template <class T, class Id>
class Task {
 public:
  using F = Compute<T>;
  static constexpr int L = kLanes<T>;

  explicit Task(const UpsampleArgmax<T>& job)
      : job_(job),
        cells_(*job.logits.cells),
        rows_(*job.logits.rows),
        classes_(job.logits.classes),
        pitch_((cells_.phases + 3) / 4 * 4),
        planes_(classes_ * kCorners * L),
        high_(classes_ * L),
        candidates_(classes_),
        ids_(kMostRows * cells_.blocks * L * pitch_),
        confidence_(job.confidence ? kMostRows * cells_.blocks * cells_.block_slots() : 0) {}

  void run(int64_t n, const BilinearBand& band) {
    for (int64_t block = 0; block < cells_.blocks; ++block) {
      const bool finite = load(n, band, block);
      const F* w0 = cells_.w0.data() + block * cells_.block_slots();
      const F* w1 = cells_.w1.data() + block * cells_.block_slots();
      for (int64_t y = band.begin; y < band.end; ++y) {
        const CellRow<F> row{planes_.data(), rows_.w0[y], rows_.w1[y], w0, w1};
        const int64_t at = (y - band.begin) * cells_.blocks + block;
        find(row, finite, at);
      }
    }
    for (int64_t y = band.begin; y < band.end; ++y) {
      write_row((n * job_.height + y - job_.first_row) * job_.width, y - band.begin);
    }
  }

 private:
  // Loads the corners of a block and notes the classes that may be the best one somewhere in it.
  // Returns whether all values are finite; else all classes may.
  bool load(int64_t n, const BilinearBand& band, int64_t block) {
    constexpr F kRounding = sizeof(F) == 4 ? F(1e-6) : F(1e-15);
    Extremes<F> seen{.high = high_.data()};
    const bool finite = CellPlanes<T>(job_.logits, planes_.data()).load(n, band, block, seen);
    if (!finite) seen.bound = Simd<F>::fill(-std::numeric_limits<F>::infinity());
    const Vector<F> bound =
        seen.bound - seen.largest * kRounding;  // what rounding could turn stays
    count_ = 0;
    for (int64_t k = 0; k < classes_; ++k) {
      if (!finite || any_lane<F>(Simd<F>::load(high_.data() + k * L) >= bound)) {
        candidates_[count_++] = static_cast<int32_t>(k);
      }
    }
    return finite;
  }

  // The ids of a block of cells in a row of the band, and their confidence.
  void find(const CellRow<F>& row, bool finite, int64_t at) {
    Best<F> best[kMostPhases];
    int phase = 0;
    const auto take = [&]<int Q>(std::integral_constant<int, Q>) {
      for (; cells_.phases - phase >= Q; phase += Q) {
        const auto of = finite ? find_best<true, Q, F> : find_best<false, Q, F>;
        of(row, phase, candidates_.data(), count_, best);
      }
    };
    // As many values and ids as stay in registers.
    if constexpr (FASTSEG_SIMD_BYTES == 64) take(std::integral_constant<int, 8>{});
    take(std::integral_constant<int, 4>{});
    take(std::integral_constant<int, 2>{});
    take(std::integral_constant<int, 1>{});
    store_ids(best, ids_.data() + at * L * pitch_);
    if (job_.confidence) {
      find_confidence(row, cells_.phases, classes_, best,
                      confidence_.data() + at * cells_.block_slots());
    }
  }

  // As [lane][phase]: the pixels of a cell side by side.
  void store_ids(const Best<F>* best, Id* to) {
    if constexpr (sizeof(Id) == 1 && sizeof(F) == 4) {
      // Four phases make a word of each lane.
      for (int p = 0; p < cells_.phases; p += 4) {
        Codes<F> word = best[p].id;
        for (int q = 1; q < std::min(4, cells_.phases - p); ++q) word |= best[p + q].id << (8 * q);
        int32_t lanes[L];
        write(lanes, word);
        for (int i = 0; i < L; ++i) std::memcpy(to + i * pitch_ + p, lanes + i, 4);
      }
    } else {
      for (int p = 0; p < cells_.phases; ++p) {
        for (int i = 0; i < L; ++i) to[i * pitch_ + p] = static_cast<Id>(best[p].id[i]);
      }
    }
  }

  // Row number `row` of the band, to the pixels from `pixel` on.
  void write_row(int64_t pixel, int64_t row) {
    const Id* ids = ids_.data() + row * cells_.blocks * L * pitch_;
    switch (job_.bytes) {
      case 1:
        write_ids(ids, static_cast<uint8_t*>(job_.classes) + pixel);
        break;
      case 2:
        write_ids(ids, static_cast<int16_t*>(job_.classes) + pixel);
        break;
      case 4:
        write_ids(ids, static_cast<int32_t*>(job_.classes) + pixel);
        break;
      default:
        write_ids(ids, static_cast<int64_t*>(job_.classes) + pixel);
    }
    if (!job_.confidence) return;
    const F* confidence = confidence_.data() + row * cells_.blocks * cells_.block_slots();
    for (int64_t x = 0; x < job_.width; ++x) {
      job_.confidence[pixel + x] = confidence[cells_.slots[x]];
    }
  }

  template <class To>
  void write_ids(const Id* ids, To* to) {
    int64_t cell = 0;
    if constexpr (sizeof(To) == 1 && sizeof(Id) == 1) {
      // Whole words, of which the next cell overwrites what is not this one's.
      if (pitch_ == 8) cell = write_words<8>(ids, to);
      if (pitch_ == 4) cell = write_words<4>(ids, to);
    }
    for (; cell < cells_.cells; ++cell) {
      for (int32_t p = 0; p < cells_.count[cell]; ++p) {
        to[cells_.first[cell] + p] = static_cast<To>(ids[cell * pitch_ + p]);
      }
    }
  }

  template <int kBytes>
  int64_t write_words(const Id* ids, uint8_t* to) {
    int64_t cell = 0;
    for (; cell < cells_.cells && cells_.first[cell] + kBytes <= job_.width; ++cell) {
      std::memcpy(to + cells_.first[cell], ids + cell * kBytes, kBytes);
    }
    return cell;
  }

  const UpsampleArgmax<T>& job_;
  const BilinearCells<F>& cells_;
  const BilinearRows<F>& rows_;
  const int64_t classes_;
  const int pitch_;  // of a cell's ids
  std::vector<F> planes_;
  std::vector<F> high_;  // the largest corners: [class][lane]
  std::vector<int32_t> candidates_;
  int64_t count_ = 0;          // of candidates
  std::vector<Id> ids_;        // [row][cell][phase]
  std::vector<F> confidence_;  // [row][block][phase][lane]
};

template <class Id, class T>
void run_tasks(const UpsampleArgmax<T>& job, int64_t begin, int64_t end) {
  Task<T, Id> task(job);
  const std::vector<BilinearBand>& bands = job.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  for (int64_t t = begin; t < end; ++t) task.run(t / count, bands[t % count]);
}

}  // namespace

template <class T>
void upsample_argmax(const UpsampleArgmax<T>& job, int64_t begin, int64_t end) {
  if (job.logits.classes <= 256) {
    run_tasks<uint8_t>(job, begin, end);
  } else {
    run_tasks<int32_t>(job, begin, end);
  }
}

#define FASTSEG_INSTANTIATE(T) \
  template void upsample_argmax(const UpsampleArgmax<T>&, int64_t, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
