#pragma once
// A mutex of an object that a forked child has a copy of.

#include <unistd.h>

#include <atomic>
#include <system_error>

namespace fastseg::host {

// Its state is the process that holds it: a thread of the parent that held it at the fork does not
// exist in the child, would never unlock it, and has left what it guards half done.
class ProcessMutex {
 public:
  // Throws std::system_error in a child whose copy of the object was in use.
  void lock() {
    const pid_t self = getpid();
    pid_t holder = 0;
    while (!holder_.compare_exchange_strong(holder, self, std::memory_order_acquire)) {
      if (holder != self) {
        throw std::system_error(std::make_error_code(std::errc::owner_dead),
                                "this object was in use by another thread when the process was "
                                "forked; the child needs a new one");
      }
      holder_.wait(holder);
      holder = 0;
    }
  }

  void unlock() {
    holder_.store(0, std::memory_order_release);
    holder_.notify_one();
  }

 private:
  std::atomic<pid_t> holder_{0};
};

}  // namespace fastseg::host
