#pragma once
// Passes of tasks on torch's threads.

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>

#include "cpu/threads/crew.h"

namespace fastseg::cpu {

// Calls body(tasks) on the calling thread, with the others of torch's threads to run tasks. They
// come and go once for all the passes of `body`: see crew.h for what is wrong with a parallel
// region each. body must not use torch's threads itself. elements: how many there are to work on;
// few are not worth a second thread.
template <class Body>
void with_torch_crew(int64_t elements, const Body& body) {
  constexpr int64_t kFew = 1 << 14;  // tens of microseconds, as long as a thread takes to come
  const int64_t threads = elements <= kFew ? 1 : torch::stable::get_num_threads();
  if (threads <= 1) return body(InlineTasks());
  Crew crew;
  std::exception_ptr error;  // would lose its message on the way through torch's C interface
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      if (thread > 0) {
        crew.help(static_cast<int>(thread));
        continue;
      }
      try {
        body(CrewTasks(crew, static_cast<int>(threads) - 1));
      } catch (...) {
        error = std::current_exception();
      }
      crew.dismiss();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace fastseg::cpu
