// The threads of the pool: how they wait for work, and how a call's tasks are dealt to them.

#include "host/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "cpu/threads/task_shares.h"

namespace fastseg::host {
namespace {

// A mean-field iteration is a row of short parallel steps. Waking a sleeping thread takes longer
// than the pause between two of them, so threads look around for this long before they sleep.
constexpr auto kAwake = std::chrono::microseconds(100);

struct Job {
  const std::function<void(int64_t)>& body;
  cpu::TaskShares shares;
  int wanted;  // helpers that may still join; guarded by the pool's mutex
  std::atomic<int> helpers{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  Job(const std::function<void(int64_t)>& body, int64_t tasks, int helpers_wanted)
      : body(body), shares(tasks, helpers_wanted + 1), wanted(helpers_wanted) {}

  void work(int thread) {
    try {
      shares.work(thread, body);
    } catch (...) {
      shares.stop();
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

// Waits until ready(), awake at first and then on the condition, whose mutex `lock` holds.
template <class Ready>
void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
          const Ready& ready) {
  if (ready()) return;
  lock.unlock();
  const auto end = std::chrono::steady_clock::now() + kAwake;
  while (!ready() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  lock.lock();
  condition.wait(lock, ready);
}

class Pool {
 public:
  void run(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      hire(job.wanted);
      jobs_.push_back(&job);
      open_jobs_.store(static_cast<int>(jobs_.size()), std::memory_order_relaxed);
    }
    job_came_.notify_all();
    job.work(0);
    std::unique_lock lock(mutex_);
    close(&job);
    wait(lock, helper_left_, [&job] { return job.helpers.load(std::memory_order_acquire) == 0; });
  }

 private:
  void hire(int helpers) {
    for (; threads_ < helpers; ++threads_) {
      try {
        std::thread([this, number = threads_ + 1] { help(number); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more: the callers do the work themselves
      }
    }
  }

  [[noreturn]] void help(int number) {
    std::unique_lock lock(mutex_);
    while (true) {
      wait(lock, job_came_, [this] { return open_jobs_.load(std::memory_order_relaxed) > 0; });
      Job* job = jobs_.front();
      job->helpers.fetch_add(1, std::memory_order_relaxed);
      if (--job->wanted == 0) close(job);
      lock.unlock();
      job->work(number);
      lock.lock();
      job->helpers.fetch_sub(1, std::memory_order_release);
      helper_left_.notify_all();
    }
  }

  // No more helpers for this job.
  void close(Job* job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), job);
    if (found != jobs_.end()) jobs_.erase(found);
    open_jobs_.store(static_cast<int>(jobs_.size()), std::memory_order_relaxed);
  }

  std::mutex mutex_;
  std::condition_variable job_came_, helper_left_;
  std::deque<Job*> jobs_;
  std::atomic<int> open_jobs_{0};
  int threads_ = 0;
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
  if (helpers <= 0) {
    for (int64_t i = 0; i < tasks; ++i) body(i);
    return;
  }
  Job job(body, tasks, helpers);
  pool().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastseg::host
