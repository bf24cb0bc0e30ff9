#pragma once
// Open-addressed tables of numbers whose keys are elsewhere, in global or shared memory.
//
// A number stands for a key that the caller can tell from it. Which slot a key gets depends on the
// order of the threads; which number stands there does not, once all have been inserted.

#include <cstdint>

namespace fastseg::cuda {

inline constexpr int kEmptySlot = -1;  // all bytes 0xff

struct HashTable {
  int* slots;
  unsigned size;  // below 2^31; more than the keys

  __device__ unsigned first(unsigned hash) const {
    return static_cast<unsigned>((uint64_t{hash} * size) >> 32);
  }
  __device__ unsigned next(unsigned slot) const { return slot + 1 == size ? 0 : slot + 1; }
};

// Inserts number >= 0 and returns its key's slot, which will hold the lowest of the key's numbers.
// same(n): whether number n has the key.
template <class Same>
__device__ inline int insert_lowest(const HashTable& table, unsigned hash, int number,
                                    const Same& same) {
  for (unsigned slot = table.first(hash);; slot = table.next(slot)) {
    int* const at = table.slots + slot;
    // Read first: most numbers find a lower one, and then need no atomic. A slot may change
    // meanwhile, but never its key.
    int found = *static_cast<volatile int*>(at);
    if (found == kEmptySlot) {
      found = atomicCAS(at, kEmptySlot, number);
      if (found == kEmptySlot) return static_cast<int>(slot);
    }
    if (same(found)) {
      if (number < found) atomicMin(at, number);
      return static_cast<int>(slot);
    }
  }
}

// The key's number, kEmptySlot if there is none. In a kernel after the last insertion.
template <class Same>
__device__ inline int find(const HashTable& table, unsigned hash, const Same& same) {
  for (unsigned slot = table.first(hash);; slot = table.next(slot)) {
    const int found = table.slots[slot];
    if (found == kEmptySlot || same(found)) return found;
  }
}

}  // namespace fastseg::cuda
