#pragma once
// Tasks on torch's threads.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <exception>
#include <mutex>

#include "cpu/threads/task_shares.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

struct TorchTasks final : TaskRunner {
  void run(int64_t tasks, const std::function<void(int64_t)>& body) const override {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
    if (threads <= 1) return InlineTasks().run(tasks, body);
    TaskShares shares(tasks, threads);
    std::mutex mutex;
    std::exception_ptr error;  // would lose its message on the way through torch's C interface
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t thread = begin; thread < end; ++thread) shares.work(thread, body);
      } catch (...) {
        shares.stop();
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }
};

}  // namespace fastseg::cpu
