#pragma once
// Threads for programs without torch's: a few that stay, shared by all callers.

#include <cstdint>
#include <functional>

#include "cpu/threads/tasks.h"

namespace fastseg::host {

// Runs tasks on the calling thread and on up to threads - 1 of the pool's. Any number of threads
// may call at once; a caller never waits for another's tasks, it only gets fewer helpers. An
// exception of a task reaches the caller, once no task of the call runs any more.
class PoolRunner : public cpu::TaskRunner {
 public:
  void set_threads(int threads) { threads_ = threads; }
  void run(int64_t tasks, const std::function<void(int64_t)>& body) const override;

 private:
  int threads_ = 1;
};

}  // namespace fastseg::host
