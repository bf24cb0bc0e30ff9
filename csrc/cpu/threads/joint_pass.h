#pragma once
// Tasks of several kinds that need not wait for each other, in one pass.

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

class JointPass {
 public:
  void add(int64_t tasks, std::function<void(int64_t)> body) {
    if (tasks > 0) parts_.push_back({tasks, std::move(body)});
  }

  // Runs all of them, each kind spread evenly: a thread then meets the same stretch of a kind in
  // every pass (task_shares.h), whatever else is in it.
  void run(const TaskRunner& tasks) const {
    int64_t total = 0;
    for (const Part& part : parts_) total += part.tasks;
    std::vector<Task> order;
    order.reserve(total);
    std::vector<int64_t> next(parts_.size());
    for (int64_t position = 0; position < total; ++position) {
      size_t least = 0;  // the part of whose tasks the smallest share is in the order
      for (size_t k = 1; k < parts_.size(); ++k) {
        if (next[k] * parts_[least].tasks < next[least] * parts_[k].tasks) least = k;
      }
      order.push_back({least, next[least]++});
    }
    tasks.run(total, [&](int64_t i) { parts_[order[i].part].body(order[i].index); });
  }

 private:
  struct Part {
    int64_t tasks;
    std::function<void(int64_t)> body;
  };
  struct Task {
    size_t part;
    int64_t index;
  };
  std::vector<Part> parts_;
};

}  // namespace fastseg::cpu
