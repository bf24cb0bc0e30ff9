// The gradient of sums of the probabilities of upsampled logits (gradient_patch.h).
//
// With a[k] and b[k] the gradients of class k's sum and intersection, the gradient of a probability
// is g[k] = a[k] + (k == t) * b[k], or 2 * p[k] * a[k] + ... of squares, and that of a logit
// p[k] * (g[k] - m) with m = sum over j of p[j] * g[j], which a block finds for its pixels first.

#include "cuda/head/gradient_patch.h"
#include "cuda/head/row_count.h"
#include "cuda/head/upsample_softmax_sums.h"

namespace fastseg::cuda {
namespace {

// Rows of pixels whose means a thread finds at once.
template <class F>
constexpr int kMeanRows = std::min(2, kPatchRows<F>);

template <class T>
struct SoftmaxSumsGradient {
  using F = Compute<T>;
  struct Class {
    F a, of_p, b;  // the gradient of p is a + of_p * p, and b more where the class is the target
  };

  SoftmaxSumsBackward job;

  __device__ Class of(int n, int k) const {
    const int64_t i = n * job.of.logits.classes + k;
    const F a = static_cast<const F*>(job.probability)[i];
    const F b = static_cast<const F*>(job.intersection)[i];
    return job.of.squared ? Class{0, 2 * a, b} : Class{a, 0, b};
  }

  __device__ F gradient(const Class& c, int k, F p, const PixelSoftmax<F>& pixel) const {
    return p * (c.a + c.of_p * p - pixel.u + (k == pixel.code ? c.b : F(0)));
  }

  // Puts the sums over all classes of p * (a + of_p * p) into the u of kRows rows from `top` on.
  template <int kRows>
  __device__ void add_means(SoftmaxPatch<T>& softmax, const PatchColumn<F>& column, bool busy,
                            int top, int rows, const CellShared<F>& cells) const {
    const int t = threadIdx.x, n = softmax.patch.n;
    const bool inside = t < softmax.patch.columns;
    Shares<F> row[kRows];
    F s[kRows], mean[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      row[r] = cells.softmax.rows[top + r], mean[r] = 0;
      const bool known = inside && top + r < rows;
      s[r] = known ? cells.pixels[(top + r) * softmax.tile() + t].s : kNoPixel<F>;
    }
    softmax.for_classes(column, busy, [&](int k, F above, F below) {
      const Class c = of(n, k);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const F p = exp2_or_zero(-(row[r].w0 * above + (row[r].w1 * below + s[r])));
        mean[r] += p * (c.a + c.of_p * p);
      }
    });
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (inside && top + r < rows) cells.pixels[(top + r) * softmax.tile() + t].u = mean[r];
    }
  }

  // m is a pixel's u.
  __device__ void load(SoftmaxPatch<T>& softmax, int first, int rows,
                       const CellShared<F>& cells) const {
    const Patch& patch = softmax.patch;
    const UpsampledLogits& z = job.of.logits;
    const int t = threadIdx.x, n = patch.n;
    const bool inside = t < patch.columns;
    const int64_t x = int64_t{patch.x} + t;
    bool counts = false;
    for (int r = 0; inside && r < rows; ++r) {
      const int64_t y = int64_t{patch.y} + first + r;
      const int code = target_at(
          job.of.target, (n * z.height + y) * z.width + x,
          "fastseg::upsample_softmax_sums_backward: target must be a class or ignore_index");
      const bool counted = code != kIgnored;
      const F s = counted ? job.normalizer.at<F>(n, y, x) : kNoPixel<F>;
      cells.pixels[r * softmax.tile() + t] = {s, 0, 0, code};
      counts |= counted;
    }
    const bool busy = __ballot_sync(~0u, counts) != 0;
    const PatchColumn<F> column = softmax.column();
    for (int top = 0; top < rows; top += kMeanRows<F>) {
      with_rows<kMeanRows<F>, 1>(rows - top, [&](auto count) {
        add_means<decltype(count)::value>(softmax, column, busy, top, rows, cells);
      });
    }
    if (!inside) return;
#pragma unroll 1
    for (int r = 0; r < rows; ++r) {
      PixelSoftmax<F>& pixel = cells.pixels[r * softmax.tile() + t];
      if (pixel.code == kIgnored) {
        pixel.u = 0;
        continue;
      }
      const F p = exp2_or_zero(-(softmax.x(column, cells.softmax.rows[r], pixel.code) + pixel.s));
      // The power of an undefined number is taken for 0: the mean carries it on.
      pixel.u += p * of(n, pixel.code).b + (pixel.s - pixel.s);
    }
  }
};

}  // namespace

cudaError_t upsample_softmax_sums_backward(const SoftmaxSumsBackward& job, cudaStream_t stream) {
  return upsampled_gradient(
      job.of.logits, {job.parts, job.channels_last}, job.grad_logits,
      [&](auto zero) { return SoftmaxSumsGradient<decltype(zero)>{job}; }, stream);
}

}  // namespace fastseg::cuda
