// The gradient of the cross-entropy of bilinearly upsampled logits (gradient_patch.h).
//
// d loss / d z[k] = p[k] * u - U * ((k == t) * (1 - e) * weight[k] + e / C * weight[k]) with the
// gradient U = grad * map of a pixel's loss and u = U * ((1 - e) * weight[t] + e / C * (sum of
// weights)).

#include "cuda/head/gradient_patch.h"
#include "cuda/head/upsample_cross_entropy.h"

namespace fastseg::cuda {
namespace {

template <class T>
struct CrossEntropyGradient {
  using F = Compute<T>;
  struct Class {
    F other, target;  // factors of U where the class is not the target, and where it is
  };

  CrossEntropyBackward job;

  __device__ F weight_of(int64_t k) const {
    return job.of.weight ? static_cast<const F*>(job.of.weight)[k] : F(1);
  }

  __device__ Class of(int, int k) const {
    const F e = static_cast<F>(job.of.label_smoothing), weight = weight_of(k);
    const F other = e / static_cast<F>(job.of.logits.classes) * weight;
    return {other, other + (1 - e) * weight};
  }

  __device__ F gradient(const Class& c, int k, F p, const PixelSoftmax<F>& pixel) const {
    return p * pixel.u - pixel.v * (k == pixel.code ? c.target : c.other);
  }

  __device__ void load(const SoftmaxPatch<T>& softmax, int first, int rows,
                       const CellShared<F>& cells) const {
    const Patch& patch = softmax.patch;
    const int t = threadIdx.x;
    if (t >= patch.columns) return;
    const UpsampledLogits& z = job.of.logits;
    const F e = static_cast<F>(job.of.label_smoothing);
    F of_all = 0;
    if (e != 0) {
      for (int64_t k = 0; k < z.classes; ++k) of_all += weight_of(k);
      of_all *= e / static_cast<F>(z.classes);
    }
    const int64_t n = patch.n, x = int64_t{patch.x} + t;
    for (int r = 0; r < rows; ++r) {
      const int64_t y = int64_t{patch.y} + first + r;
      PixelSoftmax<F> pixel{kNoPixel<F>, 0, 0,
                            target_at(job.of.target, (n * z.height + y) * z.width + x,
                                      "fastseg::upsample_cross_entropy_backward: target must be a "
                                      "class or ignore_index")};
      if (pixel.code != kIgnored) {
        pixel.s = job.normalizer.at<F>(n, y, x);
        pixel.v = job.grad.at<F>(n, y, x);
        if (job.of.weight_map.data) pixel.v *= job.of.weight_map.at<F>(n, y, x);
        // The power of an undefined number is taken for 0: the factor carries it on.
        pixel.u = pixel.v * ((1 - e) * weight_of(pixel.code) + of_all) + (pixel.s - pixel.s);
      }
      cells.pixels[r * softmax.tile() + t] = pixel;
    }
  }
};

}  // namespace

cudaError_t upsample_cross_entropy_backward(const CrossEntropyBackward& job, cudaStream_t stream) {
  return upsampled_gradient(
      job.of.logits, {job.parts, job.channels_last}, job.grad_logits,
      [&](auto zero) { return CrossEntropyGradient<decltype(zero)>{job}; }, stream);
}

}  // namespace fastseg::cuda
