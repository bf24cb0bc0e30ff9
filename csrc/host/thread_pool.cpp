// The threads of the pool: when they come to be, and whose they are.

#include "host/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>

#include "cpu/threads/crew.h"

namespace fastseg::host {
namespace {

class Pool {
 public:
  void run(int64_t tasks, int helpers, const std::function<void(int64_t)>& body) {
    hire(helpers);
    crew_.run(tasks, helpers, body);
  }

 private:
  void hire(int helpers) {
    const std::lock_guard lock(mutex_);
    for (; threads_ < helpers; ++threads_) {
      try {
        std::thread([this, number = threads_ + 1] { crew_.help(number); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more: the callers do the work themselves
      }
    }
  }

  std::mutex mutex_;
  int threads_ = 0;
  cpu::Crew crew_;
};

struct Instance {
  const pid_t owner = getpid();
  Pool pool;
};

// Never destroyed, because its threads sleep on it until the process ends. A forked child has none
// of them, and perhaps a locked mutex: it gets a pool of its own.
Pool& pool() {
  static std::atomic<Instance*> current{nullptr};
  Instance* instance = current.load();
  if (instance != nullptr && instance->owner == getpid()) return instance->pool;
  auto* fresh = new Instance;
  if (current.compare_exchange_strong(instance, fresh)) return fresh->pool;
  delete fresh;
  return instance->pool;
}

}  // namespace

void PoolRunner::run(int64_t tasks, const std::function<void(int64_t)>& body) const {
  const int helpers = static_cast<int>(std::min<int64_t>(threads_, tasks)) - 1;
  if (helpers <= 0) return cpu::InlineTasks().run(tasks, body);
  pool().run(tasks, helpers, body);
}

}  // namespace fastseg::host
