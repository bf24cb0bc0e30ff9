#pragma once
// The confusion matrix of two label maps on the CPU, without torch:
// counts[i][j] = the pixels of true class i that are predicted as j.

#include <cstdint>

#include "common/head/class_ids.h"
#include "cpu/head/map_pair.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

struct LabelMaps {
  const MapPair& pixels;
  const void* prediction;
  IdType prediction_type;
  const void* target;
  IdType target_type;
};

// The smallest and the largest id of the pixels that are not ignored.
struct IdRange {
  int64_t low, high;
};

struct IdRanges {
  IdRange prediction, target;
};

// Fills counts, ids.count x ids.count. Returns false if a pixel that is not ignored has an id that
// is no class; counts then mean nothing.
bool confusion_matrix(const LabelMaps& maps, const ClassIds& ids, int64_t* counts,
                      const TaskRunner& tasks);

// For the words of an error: some pixel is not ignored.
IdRanges id_ranges(const LabelMaps& maps, const ClassIds& ids);

}  // namespace fastseg::cpu
