// The confusion matrix of two label maps on the CPU: how pixels are dealt to tasks.

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "cpu/head/confusion_matrix.h"
#include "cpu/head/pair_counts.h"

namespace fastseg::cpu {
namespace {

// Calls body(prediction, target) with the ids of all pixels [begin, end).
template <class Body>
void for_ids(const LabelMaps& maps, int64_t begin, int64_t end, const Body& body) {
  dispatch_id(maps.prediction_type, [&](auto p) {
    dispatch_id(maps.target_type, [&](auto t) {
      const auto* prediction = static_cast<const decltype(p)*>(maps.prediction);
      const auto* target = static_cast<const decltype(t)*>(maps.target);
      const int64_t p_step = maps.pixels.prediction_stride(), t_step = maps.pixels.target_stride();
      maps.pixels.for_runs(begin, end, [&](int64_t p_first, int64_t t_first, int64_t length) {
        for (int64_t i = 0; i < length; ++i) {
          body(int64_t{prediction[p_first + i * p_step]}, int64_t{target[t_first + i * t_step]});
        }
      });
    });
  });
}

const void* element(const void* data, IdType type, int64_t offset) {
  return static_cast<const char*>(data) + offset * id_bytes(type);
}

// Adds pixels [begin, end), the prediction's slots by blocks that stay in a first-level cache.
void add_pixels(const LabelMaps& maps, int64_t begin, int64_t end, const PairTable& table) {
  constexpr int64_t kBlock = 4096;
  uint8_t slots[kBlock];
  const auto bytes = FASTSEG_SIMD_DISPATCH(class_bytes);
  const auto add = FASTSEG_SIMD_DISPATCH(add_pairs);
  const ClassIds predicted = table.ids.without_ignored();
  const int64_t p_step = maps.pixels.prediction_stride(), t_step = maps.pixels.target_stride();
  maps.pixels.for_runs(begin, end, [&](int64_t p_first, int64_t t_first, int64_t length) {
    for (int64_t i = 0; i < length; i += kBlock) {
      const int64_t size = std::min(kBlock, length - i);
      bytes({element(maps.prediction, maps.prediction_type, p_first + i * p_step),
             maps.prediction_type, p_step},
            size, predicted, slots);
      add(slots,
          {element(maps.target, maps.target_type, t_first + i * t_step), maps.target_type, t_step},
          size, table);
    }
  });
}

bool count_by_bytes(const LabelMaps& maps, const ClassIds& ids, int64_t* counts,
                    const TaskRunner& tasks) {
  const int64_t side = ids.slots(), pixels = maps.pixels.pixels();
  // So many pixels that a table's own cost, to clear and to merge it, is small beside theirs.
  const int64_t chunk = std::max<int64_t>(int64_t{1} << 17, 8 * side * side);
  std::vector<int64_t> sums(side * side);
  std::mutex mutex;
  tasks.run((pixels + chunk - 1) / chunk, [&](int64_t task) {
    PairCounts mine(ids);
    add_pixels(maps, task * chunk, std::min(pixels, (task + 1) * chunk), mine.table());
    const std::lock_guard lock(mutex);
    mine.merge_into(sums.data());
  });
  return class_counts(sums.data(), ids, counts);
}

// One thread, straight into the counts: those of so many classes are larger than the caches.
bool count_by_pixels(const LabelMaps& maps, const ClassIds& ids, int64_t* counts) {
  std::fill_n(counts, ids.count * ids.count, 0);
  int64_t last = 0, times = 0;
  bool good = true;
  for_ids(maps, 0, maps.pixels.pixels(), [&](int64_t p, int64_t t) {
    if (ids.ignores && t == ids.ignore) return;
    if (p < 0 || p >= ids.count || t < 0 || t >= ids.count) {
      good = false;
      return;
    }
    const int64_t pair = t * ids.count + p;
    if (pair != last) {
      counts[last] += times;
      last = pair;
      times = 0;
    }
    ++times;
  });
  counts[last] += times;
  return good;
}

}  // namespace

bool class_counts(const int64_t* sums, const ClassIds& ids, int64_t* counts) {
  bool good = true;
  const int64_t side = ids.slots();
  for (int64_t t = 0; t < side; ++t) {
    if (t == ids.ignored()) continue;
    const int64_t* row = sums + t * side;
    for (int64_t p = 0; p < side; ++p) {
      good &= row[p] == 0 || (t < ids.count && p < ids.count);
    }
    if (t < ids.count) std::copy_n(row, ids.count, counts + t * ids.count);
  }
  return good;
}

bool confusion_matrix(const LabelMaps& maps, const ClassIds& ids, int64_t* counts,
                      const TaskRunner& tasks) {
  return ids.count <= kMostByteClasses ? count_by_bytes(maps, ids, counts, tasks)
                                       : count_by_pixels(maps, ids, counts);
}

IdRanges id_ranges(const LabelMaps& maps, const ClassIds& ids) {
  constexpr int64_t kLow = std::numeric_limits<int64_t>::min();
  constexpr int64_t kHigh = std::numeric_limits<int64_t>::max();
  IdRanges ranges{{kHigh, kLow}, {kHigh, kLow}};
  const auto extend = [](IdRange& range, int64_t id) {
    range = {std::min(range.low, id), std::max(range.high, id)};
  };
  for_ids(maps, 0, maps.pixels.pixels(), [&](int64_t p, int64_t t) {
    if (ids.ignores && t == ids.ignore) return;
    extend(ranges.prediction, p);
    extend(ranges.target, t);
  });
  return ranges;
}

}  // namespace fastseg::cpu
