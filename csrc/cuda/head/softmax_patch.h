#pragma once
// The softmax of a patch's pixels (patch.h) by powers of two (common/head/log2_softmax.h).
//
// Shared memory holds the logits at the corners of the cells, as many classes at once as fit,
// with the classes innermost and a pitch that is odd: threads of neighbouring columns, which read
// one class of several cells, and threads of neighbouring classes meet no conflict.

#include <algorithm>
#include <cstdint>

#include "common/head/log2_softmax.h"
#include "cuda/arithmetic.h"
#include "cuda/head/patch.h"
#include "cuda/powers.h"

namespace fastseg::cuda {

inline constexpr int kCornerBytes = 24 << 10;  // for corners and what is summed up beside them

// How many classes a block holds at once, in chunks of equal size.
struct ClassChunks {
  int chunk, pitch;

  // With `buffers` numbers for each class and source column.
  ClassChunks(int64_t classes, int span, int buffers, int bytes) {
    const int64_t fit = std::max(1, kCornerBytes / (buffers * span * bytes));
    const int64_t chunks = (classes + fit - 1) / fit;
    chunk = static_cast<int>((classes + chunks - 1) / chunks);
    pitch = chunk | 1;
  }
};

template <class F>
struct SoftmaxShared {
  F *corners, *bounds, *scratch;
  Shares<F>* rows;

  FASTSEG_HOST_DEVICE SoftmaxShared(SharedSpace& space, int span, int pitch)
      : corners(space.take<F>(2 * span * pitch)),
        bounds(space.take<F>(2 * span)),
        scratch(space.take<F>(kPatchThreads)),
        rows(space.take<Shares<F>>(kPatchRows<F>)) {}
};

// A thread's column of pixels; threads beyond the last one have its.
template <class F>
struct PatchColumn {
  int cell, next;  // slots
  F w0, w1;        // shares, times log2(e)
  F bound;         // the largest logit of the cell
};

template <class T>
class SoftmaxPatch {
 public:
  using F = Compute<T>;

  __device__ SoftmaxPatch(const UpsampledLogits& logits, const PatchGrid<F>& grid,
                          const Patch& patch, const ClassChunks& chunks,
                          const SoftmaxShared<F>& shared)
      : patch(patch), shared(shared), logits_(logits), grid_(grid), chunks_(chunks) {}

  // All threads meet in this, as in all that follows but for bound(), x() and normalizer().
  __device__ void find_bounds() {
    const int corners = 2 * patch.slots, t = threadIdx.x;
    const int width = corners < kPatchThreads ? corners : kPatchThreads;
    const int groups = kPatchThreads / width;  // of threads, which share the classes
    const bool classes_first = logits_.stride_c == 1;
    const int group = classes_first ? t % groups : t / width;
    const int lane = classes_first ? t / groups : t % width;
    for (int first = 0; first < corners; first += width) {
      const int corner = first + lane;
      if (group < groups && lane < width && corner < corners) {
        const T* from = corner_of(corner / patch.slots, corner % patch.slots);
        F largest = -kInfinite<F>;
        for (int64_t k = group; k < logits_.classes; k += groups) {
          const F v = read(from, k);
          largest = v > largest ? v : largest;
        }
        shared.scratch[group * width + lane] = largest;
      }
      __syncthreads();
      if (t < width && first + t < corners) {
        F largest = shared.scratch[t];
        for (int g = 1; g < groups; ++g) {
          const F v = shared.scratch[g * width + t];
          largest = v > largest ? v : largest;
        }
        const int row = (first + t) / patch.slots;
        shared.bounds[row * grid_.span + (first + t) - row * patch.slots] = largest;
      }
      __syncthreads();
    }
  }

  // The most columns of a patch.
  __device__ int tile() const { return grid_.tile; }

  __device__ F bound(int cell, int next) const {
    const F *above = shared.bounds, *below = above + grid_.span;
    const F a = above[cell] > above[next] ? above[cell] : above[next];
    const F b = below[cell] > below[next] ? below[cell] : below[next];
    return a > b ? a : b;
  }

  __device__ int next_slot(int cell) const {
    return static_cast<int>(grid_.columns.next(patch.left + cell)) - patch.left;
  }

  __device__ PatchColumn<F> column() const {
    const int t = threadIdx.x;
    const int x = patch.x + (t < patch.columns ? t : patch.columns - 1);
    const BilinearTap<F> tap = grid_.columns.tap(x);
    const int cell = static_cast<int>(tap.at) - patch.left;
    const int next = static_cast<int>(tap.next) - patch.left;
    return {cell, next, tap.w0 * kLog2e<F>, tap.w1 * kLog2e<F>, bound(cell, next)};
  }

  // The shares of the kPatchRows rows from `first` of the patch on; those beyond the last are its.
  __device__ void load_rows(int first) {
    __syncthreads();
    if (threadIdx.x < kPatchRows<F>) {
      const int row = first + static_cast<int>(threadIdx.x);
      const auto tap = grid_.rows.tap(patch.y + (row < patch.rows ? row : patch.rows - 1));
      shared.rows[threadIdx.x] = {tap.w0, tap.w1};
    }
    __syncthreads();
  }

  // Brings the corners of the classes from `first` on to shared memory; returns their number.
  __device__ int load_classes(int first) {
    const int left = static_cast<int>(logits_.classes) - first;
    const int count = left < chunks_.chunk ? left : chunks_.chunk;
    if (first == loaded_) return count;
    __syncthreads();
    const int corners = 2 * patch.slots;
    const bool classes_first = logits_.stride_c == 1;
    for (int i = threadIdx.x; i < corners * count; i += kPatchThreads) {
      const int k = classes_first ? i % count : i / corners;
      const int corner = classes_first ? i / count : i % corners;
      const int row = corner / patch.slots, slot = corner % patch.slots;
      shared.corners[(row * grid_.span + slot) * chunks_.pitch + k] =
          read(corner_of(row, slot), first + k);
    }
    __syncthreads();
    loaded_ = first;
    return count;
  }

  // A class's logit at a corner; it is loaded.
  __device__ F corner(int row, int slot, int k) const {
    return shared.corners[(row * grid_.span + slot) * chunks_.pitch + k];
  }

  // Calls body(k, a, b) for all classes where the thread is busy, with x of the column in the two
  // source rows.
  template <class Body>
  __device__ void for_classes(const PatchColumn<F>& column, bool busy, const Body& body) {
    for (int first = 0; first < logits_.classes; first += chunks_.chunk) {
      const int count = load_classes(first);
      if (!busy) continue;
      const auto between = [&](int row, int k) {
        return column.w0 * (column.bound - corner(row, column.cell, k)) +
               column.w1 * (column.bound - corner(row, column.next, k));
      };
#pragma unroll 1
      for (int k = 0; k < count; ++k) body(first + k, between(0, k), between(1, k));
    }
  }

  // x of any class, out of the logits themselves.
  __device__ F x(const PatchColumn<F>& column, const Shares<F>& row, int64_t k) const {
    const auto between = [&](int source) {
      return column.w0 * (column.bound - read(corner_of(source, column.cell), k)) +
             column.w1 * (column.bound - read(corner_of(source, column.next), k));
    };
    return row.w0 * between(0) + row.w1 * between(1);
  }

  // s of a pixel with the sum of its powers.
  __device__ F normalizer(F sum, const PatchColumn<F>& column, const Shares<F>& row) const {
    if (!(sum < kVanishes<F>)) return log2_of(sum);
    F least = kInfinite<F>, undefined = 0;
    for (int64_t k = 0; k < logits_.classes; ++k) {
      const F v = x(column, row, k);
      least = v < least ? v : least;
    }
    sum = 0;
    for (int64_t k = 0; k < logits_.classes; ++k) {
      const F d = x(column, row, k) - least;
      if (d != d) undefined = d;
      sum += exp2_of(-d);
    }
    return log2_of(sum) - least + undefined;
  }

  const Patch& patch;
  const SoftmaxShared<F>& shared;

 private:
  __device__ const T* corner_of(int row, int slot) const {
    return static_cast<const T*>(logits_.data) + patch.n * logits_.stride_n +
           (row == 0 ? patch.at : patch.next) * logits_.stride_h +
           (patch.left + slot) * logits_.stride_w;
  }
  __device__ F read(const T* corner, int64_t k) const {
    return within_range(to_compute(corner[k * logits_.stride_c]));
  }

  const UpsampledLogits& logits_;
  const PatchGrid<F>& grid_;
  const ClassChunks& chunks_;
  int loaded_ = -1;  // the first class in shared memory
};

}  // namespace fastseg::cuda
