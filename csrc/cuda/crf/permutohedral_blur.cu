// These kernels take microseconds, so launches count: one serves all lattices, and takes several
// steps of a blur: three, or two of both orders of a symmetric one, whose last steps are taken
// together with their mean. And one takes an axis of a Gaussian of pixels along, whose blocks come
// first, since they take longest.
//
// Floor: each tile's row in once and each vertex's row out; a row in and out and the indices, two a
// step and vertex that is blurred on the way, for each vertex and launch, if the neighbours' rows
// come from the caches: 24 thousand vertices of 24 channels are 2.3 MB each.

#include <algorithm>
#include <limits>
#include <vector>

#include "cuda/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_blur_steps.h"
#include "cuda/crf/permutohedral_reduce.h"
#include "cuda/crf/spatial_gaussian_pass.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kVertexThreads) permutohedral_reduce(const Reduces<T> parts) {
  reduce_all<T, V>(parts, blockIdx.x, gridDim.x);
}

// kMost: steps of a launch.
template <class T, int kMost, int V>
__global__ void __launch_bounds__(kVertexThreads, 6 - kMost)
    permutohedral_blur(const Blurs<T> parts) {
  blur_all<T, kMost, V>(parts, blockIdx.x, gridDim.x);
}

template <class T, int kMost, int V>
void launch_blur(const Blurs<T>& parts, cudaStream_t stream) {
  FASTSEG_LAUNCH((permutohedral_blur<T, kMost, V>), parts.blocks(), kVertexThreads, 0, stream,
                 parts);
}

using PixelPass = GaussianPass<float, 4>;
static_assert(PixelPass::kThreads <= kVertexThreads);
static_assert(sizeof(Blurs<double>) + sizeof(PixelPass) <= 4096, "a launch takes 4 KB");

// The same beside a Gaussian's pass.
__global__ void __launch_bounds__(kVertexThreads, 3)
    permutohedral_reduce_beside_pass(const Reduces<float> parts, const PixelPass pass) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int tiles = static_cast<int>(pass.blocks), block = blockIdx.x;
  if (block < tiles) {
    gaussian_tile<float, 4, false>(pass, block, shared);
  } else {
    reduce_all<float, 4>(parts, block - tiles, gridDim.x - tiles);
  }
}

__global__ void __launch_bounds__(kVertexThreads, 3)
    permutohedral_blur_beside_pass(const Blurs<float> parts, const PixelPass pass) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int tiles = static_cast<int>(pass.blocks), block = blockIdx.x;
  if (block < tiles) {
    gaussian_tile<float, 4, false>(pass, block, shared);
  } else {
    blur_all<float, kStepsOfBoth<float>, 4>(parts, block - tiles, gridDim.x - tiles);
  }
}

template <class Kernel, class AllParts>
cudaError_t launch_with(Kernel* kernel, const AllParts& parts, const PixelPass& pass,
                        cudaStream_t stream) {
  const int64_t blocks = pass.blocks + parts.blocks();
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  FASTSEG_LAUNCH(kernel, static_cast<unsigned>(blocks), kVertexThreads,
                 static_cast<size_t>(pass.shared_bytes), stream, parts, pass);
  return cudaGetLastError();
}

std::vector<PixelPass> passes_of(const PixelFilter* filters, int count) {
  std::vector<PixelPass> passes;
  for (const PixelFilter* filter = filters; filter != filters + count; ++filter) {
    for_passes(filter->grid, filter->taps, filter->in, filter->out, filter->scratch,
               [&](auto... pass) {
                 passes.push_back(gaussian_pass<float, 4>(false, pass...));
                 return cudaSuccess;
               });
  }
  return passes;
}

}  // namespace

template <class T, int V>
cudaError_t reduce_and_blur(VertexJob<T>* jobs, int count, cudaStream_t stream) {
  const Reduces<T> sums = reduces<T, V>(jobs, count);
  FASTSEG_LAUNCH((permutohedral_reduce<T, V>), sums.blocks(), kVertexThreads, 0, stream, sums);
  const bool both =
      std::any_of(jobs, jobs + count, [](const auto& job) { return job.blur.symmetric; });
  constexpr int kBoth = kStepsOfBoth<T>, kOne = kStepsOfOne<T>;
  Blurrings<T, V> blurs(jobs, count, both ? kBoth : kOne);
  while (blurs.remain()) {
    const Blurs<T> launch = blurs.next();
    both ? launch_blur<T, kBoth, V>(launch, stream) : launch_blur<T, kOne, V>(launch, stream);
  }
  blurs.set_results(jobs);
  return cudaGetLastError();
}

cudaError_t reduce_and_blur_beside(VertexJob<float>* jobs, int count, const PixelFilter* filters,
                                   int filter_count, cudaStream_t stream) {
  if (filter_count == 0)
    return count == 0 ? cudaSuccess : reduce_and_blur<float, 4>(jobs, count, stream);
  const std::vector<PixelPass> passes = passes_of(filters, filter_count);
  auto pass = passes.begin();
  cudaError_t error = launch_with(permutohedral_reduce_beside_pass, reduces<float, 4>(jobs, count),
                                  *pass++, stream);
  Blurrings<float, 4> blurs(jobs, count, kStepsOfBoth<float>);
  while (error == cudaSuccess && (blurs.remain() || pass != passes.end())) {
    const Blurs<float> launch = blurs.next();
    if (pass != passes.end()) {
      error = launch_with(permutohedral_blur_beside_pass, launch, *pass++, stream);
    } else {
      launch_blur<float, kStepsOfBoth<float>, 4>(launch, stream);
    }
  }
  blurs.set_results(jobs);
  return error == cudaSuccess ? cudaGetLastError() : error;
}

#define FASTSEG_INSTANTIATE(T, V) \
  template cudaError_t reduce_and_blur<T, V>(VertexJob<T>*, int, cudaStream_t);
FASTSEG_INSTANTIATE(float, 1)
FASTSEG_INSTANTIATE(float, 4)
FASTSEG_INSTANTIATE(double, 1)
FASTSEG_INSTANTIATE(double, 4)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
