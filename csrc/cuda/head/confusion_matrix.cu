// The confusion matrix of two label maps.
//
// A block counts in a table of its own in shared memory (pair_counts.h). Where the table of so many
// classes does not fit there, threads add to the result itself.
//
// Floor: the bytes of both maps, read once.

#include <algorithm>

#include "cuda/head/confusion_matrix.h"
#include "cuda/head/pair_counts.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"
#include "cuda/vector_access.h"

namespace fastseg::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kBlocks = 4;                  // of a multiprocessor, at 64 registers a thread
constexpr int kMostBlocks = kBlocks * 132;  // on an H100
constexpr int kPixels = 8;                  // of a thread at once

// The slots (common/head/class_ids.h) of kPixels neighbours that begin at `first`, of which the
// first `count` are there. As one vector all are, and aligned. The branch on the type is the same
// for all threads.
__device__ inline void load_slots(const void* data, IdType type, const ClassIds& ids, int64_t first,
                                  int64_t count, bool vector, int (&slots)[kPixels]) {
  dispatch_id(type, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(data) + first;
    T values[kPixels] = {};
    if (vector) {
      load(from, values);
    } else {
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (i < count) values[i] = from[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) slots[i] = static_cast<int>(ids.slot(values[i]));
  });
}

// The pair's place in the counts.
__device__ inline int pair_of(const ClassIds& ids, int prediction, int target) {
  if (target == ids.ignored()) return kNoPair;
  FASTSEG_DEVICE_CHECK(prediction != ids.none(),
                       "fastseg::confusion_matrix: prediction must hold ids 0 to num_classes - 1");
  FASTSEG_DEVICE_CHECK(target != ids.none(),
                       "fastseg::confusion_matrix: target must hold ids 0 to num_classes - 1");
  return target * static_cast<int>(ids.count) + prediction;
}

// A block takes every gridDim.x-th tile of kBlockThreads * kPixels pixels. `vectors` says whether
// the maps are aligned for vectors.
template <bool kShared>
__global__ void __launch_bounds__(kBlockThreads, kBlocks)
    confusion_matrix_pairs(ConfusionMatrix op, bool vectors, PairCount* counts) {
  FASTSEG_DYNAMIC_SHARED(unsigned, table);
  const int cells = static_cast<int>(op.ids.count * op.ids.count);
  if constexpr (kShared) {
    clear_table<kBlockThreads>(table, cells);
  }
  const int64_t step = int64_t{kBlockThreads} * kPixels;
  for (int64_t tile = blockIdx.x * step; tile < op.pixels; tile += gridDim.x * step) {
    const int64_t first = tile + threadIdx.x * kPixels;
    const int64_t count = op.pixels - first;
    const bool vector = vectors && count >= kPixels;
    int prediction[kPixels], target[kPixels];
    load_slots(op.prediction, op.prediction_type, op.ids.without_ignored(), first, count, vector,
               prediction);
    load_slots(op.target, op.target_type, op.ids, first, count, vector, target);
    int pairs[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      pairs[i] = i < count ? pair_of(op.ids, prediction[i], target[i]) : kNoPair;
    }
    if constexpr (kShared) {
      add_pairs(pairs, table);
    } else {
      add_pairs(pairs, counts);
    }
  }
  if constexpr (kShared) {
    add_table<kBlockThreads>(table, cells, counts);
  }
}

bool is_vector(const void* data, IdType type) {
  return is_aligned(data, std::min(kVectorBytes, kPixels * id_bytes(type)));
}

template <bool kShared>
void launch(const ConfusionMatrix& op, int64_t shared_bytes, int64_t* counts, cudaStream_t stream) {
  constexpr int64_t kStep = int64_t{kBlockThreads} * kPixels;
  const int64_t tiles = (op.pixels + kStep - 1) / kStep;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, kMostBlocks));
  const bool vectors =
      is_vector(op.prediction, op.prediction_type) && is_vector(op.target, op.target_type);
  FASTSEG_LAUNCH((confusion_matrix_pairs<kShared>), blocks, kBlockThreads, shared_bytes, stream, op,
                 vectors, reinterpret_cast<PairCount*>(counts));
}

}  // namespace

cudaError_t confusion_matrix(const ConfusionMatrix& op, int64_t* counts, cudaStream_t stream) {
  const int64_t cells = op.ids.count * op.ids.count;
  cudaError_t error = cudaMemsetAsync(counts, 0, cells * sizeof(int64_t), stream);
  if (error != cudaSuccess || op.pixels == 0) return error;
  const int64_t bytes = cells * int64_t{sizeof(unsigned)};
  if (bytes <= kMaxSharedBytes) {
    error = allow_shared(confusion_matrix_pairs<true>, bytes);
    if (error != cudaSuccess) return error;
    launch<true>(op, bytes, counts, stream);
  } else {
    launch<false>(op, 0, counts, stream);
  }
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
