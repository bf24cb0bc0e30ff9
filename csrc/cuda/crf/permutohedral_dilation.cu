// Dilation: the vertices beside those that points touch, so that the blur's mass does not end
// there.
//
// A thread makes a candidate, a neighbour of a touched vertex along an axis: if no point touches
// it, it goes into a table, with a mark for the axis. Those that stay are numbered by their first
// candidates, behind their image's touched vertices, so the order of threads does not matter.
//
// A candidate looks up one or two keys, at a slot and a simplex each; 12 bytes pass in order.

#include "common/crf/permutohedral.h"
#include "cuda/crf/hash_table.h"
#include "cuda/crf/permutohedral_groups.h"
#include "cuda/crf/permutohedral_keys.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

__device__ inline int candidates_of(const LatticeDilation& op, int corners) {
  return op.touched_count() * corners * 2;
}

template <int D>
__global__ void __launch_bounds__(kLatticeThreads)
    candidates_hash(LatticeDilation op, HashTable touched, HashTable added, VertexSources sources) {
  const int candidate = static_cast<int>(lattice_thread());
  if (candidate >= candidates_of(op, D + 1)) return;
  const VertexKey<D> key = sources.of_candidate<D>(candidate);
  const unsigned hash = key.hash();
  const int vertex = find(
      touched, hash, [&](int other) { return key == sources.of_entry<D>(sources.touched[other]); });
  int slot = -1;
  if (vertex == kEmptySlot) {
    slot = insert_lowest(added, hash, candidate,
                         [&](int other) { return key == sources.of_candidate<D>(other); });
    atomicOr(op.axes + slot, 1u << (candidate / 2 % (D + 1)));
  }
  op.candidate_slots[candidate] = slot;
}

__global__ void __launch_bounds__(kLatticeThreads) keep_kernel(LatticeDilation op, int corners) {
  const int candidate = static_cast<int>(lattice_thread());
  if (candidate >= candidates_of(op, corners)) return;
  const int slot = op.candidate_slots[candidate];
  const bool is_first = slot >= 0 && op.table[slot] == candidate;
  op.numbers[candidate] = is_first && (!op.joining || __popc(op.axes[slot]) > 1);
}

// A thread makes a candidate; the first of an image counts those before.
__global__ void __launch_bounds__(kLatticeThreads)
    number_added_kernel(LatticeDilation op, FastDivisor corners, FastDivisor points, int* sources,
                        int* added_starts) {
  const int candidate = static_cast<int>(lattice_thread());
  if (candidate >= candidates_of(op, corners)) return;
  const int vertex = candidate / 2 / corners;
  const int image = op.touched[vertex] / corners / points;
  const int number = op.numbers[candidate], place = op.image_starts[image + 1] + number;
  if (op.numbers[candidate + 1] > number && place < op.most_vertices) sources[place] = ~candidate;
  if (candidate == op.image_starts[image] * corners * 2) added_starts[image] = number;
}

__global__ void __launch_bounds__(kLatticeThreads)
    move_touched_kernel(LatticeDilation op, FastDivisor corners, FastDivisor points,
                        const int* added_starts, int* sources) {
  const int vertex = static_cast<int>(lattice_thread());
  if (vertex >= op.touched_count()) return;
  const int entry = op.touched[vertex], place = vertex + added_starts[entry / corners / points];
  if (place < op.most_vertices) sources[place] = entry;
}

}  // namespace

cudaError_t find_added(const LatticeShape& shape, const LatticeDilation& op, cudaStream_t stream) {
  const int64_t count = op.candidates(shape.d);
  const HashTable touched{op.touched_table, static_cast<unsigned>(shape.table_size())};
  const HashTable added{op.table, static_cast<unsigned>(2 * count)};
  const VertexSources sources{op.simplices, op.touched, FastDivisor(shape.padded())};
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH(candidates_hash<D>, lattice_blocks(count), kLatticeThreads, 0, stream, op,
                   touched, added, sources);
  });
  FASTSEG_LAUNCH(keep_kernel, lattice_blocks(count), kLatticeThreads, 0, stream, op, shape.d + 1);
  return cudaGetLastError();
}

cudaError_t number_added(const LatticeShape& shape, const LatticeDilation& op, int* sources,
                         int* added_starts, cudaStream_t stream) {
  const int64_t count = op.candidates(shape.d);
  const FastDivisor corners(shape.d + 1), points(shape.padded());
  FASTSEG_LAUNCH(number_added_kernel, lattice_blocks(count), kLatticeThreads, 0, stream, op,
                 corners, points, sources, added_starts);
  FASTSEG_LAUNCH(move_touched_kernel, lattice_blocks(op.touched_count.most), kLatticeThreads, 0,
                 stream, op, corners, points, static_cast<const int*>(added_starts), sources);
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
