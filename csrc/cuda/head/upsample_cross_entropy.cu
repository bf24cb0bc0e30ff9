// The cross-entropy of bilinearly upsampled logits, which are never stored.
//
// A block makes a patch (patch.h); a thread makes a column of it, kPatchRows rows at a time: for
// each class it reads the four corners of its cell from shared memory, interpolates along the row
// twice, and adds a power of two to the sum of each row. The largest corner of all classes bounds
// the pixels' logits (common/head/log2_softmax.h), so that no pass looks for each pixel's own.
// Instructions for a pixel and a class: interpolation 2, power 1, sum 1, and 1 / kPatchRows of 4
// loads and 8 more; the special function unit, with 16 powers a cycle, is what all wait for.
// Floor: the logits and the targets once, and one or two numbers for each pixel, in bytes.
//
// loss = map * ((1 - e) * weight[t] * nll(t) + e / C * sum over k of weight[k] * nll(k)) with
// nll(k) = (x[k] + s) * ln(2). The last sum is linear in x, and is taken in the source rows.
//
// Losses are summed in double: by blocks, and the blocks' sums by a second kernel in their order.

#include "cuda/head/block_sum.h"
#include "cuda/head/pixel_targets.h"
#include "cuda/head/row_count.h"
#include "cuda/head/softmax_patch.h"
#include "cuda/head/upsample_cross_entropy.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kTotalThreads = 256;

template <class F>
struct ForwardShared {
  double* totals;
  SoftmaxShared<F> softmax;
  F* sums;  // [row][thread]

  FASTSEG_HOST_DEVICE ForwardShared(SharedSpace& space, int span, int pitch)
      : totals(space.take<double>(kPatchThreads / 32)),
        softmax(space, span, pitch),
        sums(space.take<F>(kPatchRows<F> * kPatchThreads)) {}
};

// What smoothing adds up over all classes, in the two source rows.
template <class F>
struct Smoothing {
  F above, below, weights;
};

template <class T>
__device__ inline Compute<T> weight_of(const CrossEntropy& of, int64_t k) {
  using F = Compute<T>;
  return of.weight ? static_cast<const F*>(of.weight)[k] : F(1);
}

// A pixel's loss, of the class `target`; its weight is a factor of `weight`.
template <class T>
__device__ inline Compute<T> pixel_loss(const CrossEntropy& of, const SoftmaxPatch<T>& softmax,
                                        const PatchColumn<Compute<T>>& column,
                                        const Shares<Compute<T>>& row, int target, Compute<T> s,
                                        const Smoothing<Compute<T>>& smooth) {
  using F = Compute<T>;
  const F e = static_cast<F>(of.label_smoothing);
  F loss = (softmax.x(column, row, target) + s) * weight_of<T>(of, target) * (1 - e);
  if (e != 0) {
    const F x = row.w0 * smooth.above + row.w1 * smooth.below;
    loss += (x + s * smooth.weights) * (e / static_cast<F>(of.logits.classes));
  }
  return loss * kLn2<F>;
}

template <class T>
__global__ void __launch_bounds__(kPatchThreads, kPatchBlocks<Compute<T>>)
    cross_entropy_pixels(CrossEntropyForward job, PatchGrid<Compute<T>> grid, ClassChunks chunks) {
  using F = Compute<T>;
  constexpr const char* kBadTarget =
      "fastseg::upsample_cross_entropy: target must be a class or ignore_index";
  FASTSEG_DYNAMIC_SHARED(unsigned char, bytes);
  SharedSpace space(bytes);
  const ForwardShared<F> shared(space, grid.span, chunks.pitch);
  const CrossEntropy& of = job.of;
  const Patch patch = patch_of(grid, blockIdx.x);
  const int t = threadIdx.x;
  const bool inside = t < patch.columns;
  const auto pixel_of = [&](int row) {
    return (int64_t{patch.n} * of.logits.height + patch.y + row) * of.logits.width + patch.x + t;
  };
  SoftmaxPatch<T> softmax(of.logits, grid, patch, chunks, shared.softmax);
  if (patch.rows > 0) softmax.find_bounds();
  const PatchColumn<F> column = softmax.column();
  F total_loss = 0, total_weight = 0;
  for (int first = 0; first < patch.rows; first += kPatchRows<F>) {
    const int rows = patch.rows - first < kPatchRows<F> ? patch.rows - first : kPatchRows<F>;
    bool counts = false;
    for (int r = 0; inside && r < rows; ++r) {
      counts |= target_at(of.target, pixel_of(first + r), kBadTarget) != kIgnored;
    }
    const bool busy = __ballot_sync(~0u, counts) != 0;
    softmax.load_rows(first);
    Smoothing<F> smooth{0, 0, 0};
    with_rows<kPatchRows<F>, 1>(rows, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      Shares<F> row[kRows];
      F sum[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) row[r] = shared.softmax.rows[r], sum[r] = 0;
      softmax.for_classes(column, busy, [&](int k, F a, F b) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] += exp2_of(-(row[r].w0 * a + row[r].w1 * b));
        if (of.label_smoothing != 0) {
          const F weight = weight_of<T>(of, k);
          smooth.above += weight * a, smooth.below += weight * b, smooth.weights += weight;
        }
      });
      // A thread's own sums: so they can be read in a loop that is not unrolled.
#pragma unroll
      for (int r = 0; r < kRows; ++r) shared.sums[r * kPatchThreads + t] = sum[r];
    });
#pragma unroll 1
    for (int r = 0; inside && r < rows; ++r) {
      const int64_t pixel = pixel_of(first + r);
      const int target = target_at(of.target, pixel, kBadTarget);
      const Shares<F> here = shared.softmax.rows[r];
      F s = 0, loss = 0, weight = 0;
      if (target != kIgnored) {
        s = softmax.normalizer(shared.sums[r * kPatchThreads + t], column, here);
        loss = pixel_loss<T>(of, softmax, column, here, target, s, smooth);
        weight = weight_of<T>(of, target);
        if (of.weight_map.data) {
          const F factor = of.weight_map.at<F>(patch.n, patch.y + first + r, int64_t{patch.x} + t);
          loss *= factor, weight *= factor;
        }
      }
      static_cast<F*>(job.normalizer)[pixel] = s;
      if (job.pixel_loss) static_cast<F*>(job.pixel_loss)[pixel] = loss;
      total_loss += loss, total_weight += weight;
    }
  }
  const double loss = block_sum<kPatchThreads>(total_loss, shared.totals);
  const double weight = block_sum<kPatchThreads>(total_weight, shared.totals);
  if (t == 0) {
    job.sums[2 * int64_t{blockIdx.x}] = loss;
    job.sums[2 * int64_t{blockIdx.x} + 1] = weight;
  }
}

template <class F>
__global__ void __launch_bounds__(kTotalThreads)
    cross_entropy_total(CrossEntropyForward job, int64_t blocks) {
  FASTSEG_DYNAMIC_SHARED(double, scratch);
  double loss = 0, weight = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kTotalThreads) {
    loss += job.sums[2 * i], weight += job.sums[2 * i + 1];
  }
  loss = block_sum<kTotalThreads>(loss, scratch);
  weight = block_sum<kTotalThreads>(weight, scratch);
  if (threadIdx.x != 0) return;
  *static_cast<F*>(job.total_weight) = static_cast<F>(weight);
  if (job.loss) *static_cast<F*>(job.loss) = static_cast<F>(job.mean ? loss / weight : loss);
}

template <class T>
cudaError_t launch(const CrossEntropyForward& job, cudaStream_t stream) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.of.logits;
  const PatchGrid<F> grid(z);
  const int64_t blocks = grid.blocks(z.batch);
  if (blocks > 0) {
    const ClassChunks chunks(z.classes, grid.span, 2, sizeof(F));
    SharedSpace space(nullptr);
    ForwardShared<F>(space, grid.span, chunks.pitch);
    const cudaError_t error = allow_shared(cross_entropy_pixels<T>, space.used());
    if (error != cudaSuccess) return error;
    FASTSEG_LAUNCH((cross_entropy_pixels<T>), static_cast<unsigned>(blocks), kPatchThreads,
                   space.used(), stream, job, grid, chunks);
  }
  FASTSEG_LAUNCH((cross_entropy_total<F>), 1, kTotalThreads, kTotalThreads / 32 * sizeof(double),
                 stream, job, blocks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t upsample_cross_entropy(const CrossEntropyForward& job, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  dispatch(job.of.logits.dtype, [&](auto zero) { error = launch<decltype(zero)>(job, stream); });
  return error;
}

}  // namespace fastseg::cuda
