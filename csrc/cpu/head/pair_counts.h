#pragma once
// Counts of pairs (true class, predicted class), without torch: what a confusion matrix adds up.
//
// A task has a table of its own, adds runs of pixels to it and merges it into the sums at its end.
// Ids become bytes on the way in, a slot of common/head/class_ids.h each, so that what is ignored
// and what is no class is counted too, and nothing is looked at twice: after the last run the
// table tells whether an id was bad.

#include <cstdint>
#include <vector>

#include "common/head/class_ids.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Of so many classes the slots fit into a byte.
inline constexpr int64_t kMostByteClasses = 254;

// Ids that are `stride` elements apart.
struct IdRun {
  const void* data;
  IdType type;
  int64_t stride;
};

// Counts as kernels see them: element [target slot][prediction slot] of a square, in one or four
// copies that add up. Neighbours go to different copies, since to add to what was stored a moment
// ago waits for the store.
struct PairTable {
  ClassIds ids;
  int side;          // ids.slots()
  int64_t copy;      // elements from a copy to the next; 0: there is one alone
  uint32_t* counts;  // of fewer than 2^32 pixels
};

// A task's counts. ids.count <= kMostByteClasses.
class PairCounts {
 public:
  explicit PairCounts(const ClassIds& ids)
      : ids_(ids),
        square_(ids.slots() * ids.slots()),
        copies_(ids.count <= kCopiedClasses ? 4 : 1),
        counts_(square_ * copies_) {}

  PairTable table() {
    return {ids_, static_cast<int>(ids_.slots()), copies_ > 1 ? square_ : 0, counts_.data()};
  }

  // Adds the counts to sums, a square of ids.slots().
  void merge_into(int64_t* sums) const {
    for (int64_t c = 0; c < copies_; ++c) {
      for (int64_t k = 0; k < square_; ++k) sums[k] += counts_[c * square_ + k];
    }
  }

 private:
  static constexpr int64_t kCopiedClasses = 64;  // four copies of more leave a second-level cache

  ClassIds ids_;
  int64_t square_;
  int64_t copies_;
  std::vector<uint32_t> counts_;
};

// Copies the counts of classes from sums, a square of ids.slots(). Returns whether all pixels that
// are not ignored are of a class.
bool class_counts(const int64_t* sums, const ClassIds& ids, int64_t* counts);

// Writes the slots of n ids as bytes. ids.count <= kMostByteClasses.
FASTSEG_DECLARE_KERNEL(void class_bytes(const IdRun& run, int64_t n, const ClassIds& ids,
                                        uint8_t* slots))

// Adds n pixels. `prediction` holds slots: classes, or what class_bytes wrote.
FASTSEG_DECLARE_KERNEL(void add_pairs(const uint8_t* prediction, const IdRun& target, int64_t n,
                                      const PairTable& table))

}  // namespace fastseg::cpu
