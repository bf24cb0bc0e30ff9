#pragma once
// How the lattice and the mean field use threads, without knowing whose threads they are: the torch
// ops bring torch's (torch_tasks.h), the module without torch its own.

#include <cstdint>
#include <functional>

namespace fastseg::cpu {

struct TaskRunner {
  virtual ~TaskRunner() = default;

  // Runs body(i) once for each i in [0, tasks), in any order, on some threads, and returns when all
  // are done. Work is cut into tasks by sizes alone, never by threads, so that results do not
  // depend on their number. An exception of a body reaches the caller.
  virtual void run(int64_t tasks, const std::function<void(int64_t)>& body) const = 0;
};

// The calling thread alone.
struct InlineTasks final : TaskRunner {
  void run(int64_t tasks, const std::function<void(int64_t)>& body) const override {
    for (int64_t i = 0; i < tasks; ++i) body(i);
  }
};

}  // namespace fastseg::cpu
