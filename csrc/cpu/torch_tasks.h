#pragma once
// Tasks on torch's threads. Tasks take unequal times, so a thread takes the next one when it is
// done with its last.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

#include "cpu/tasks.h"

namespace fastseg::cpu {

struct TorchTasks final : TaskRunner {
  void run(int64_t tasks, const std::function<void(int64_t)>& body) const override {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
    if (threads <= 1) return InlineTasks().run(tasks, body);
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::exception_ptr error;  // would lose its message on the way through torch's C interface
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      try {
        for (int64_t i; (i = next.fetch_add(1)) < tasks;) body(i);
      } catch (...) {
        next = tasks;
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  }
};

}  // namespace fastseg::cpu
