// How the threads of a crew wait for work and for each other, and how tasks are dealt to them.

#include "cpu/threads/crew.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "cpu/threads/task_shares.h"

namespace fastseg::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// A mean-field iteration is a row of short parallel steps. Waking a sleeping thread takes longer
// than the pause between two of them, so threads look around for this long before they sleep. No
// longer: on processors that others want, too, threads that spin are in the way of those that work.
constexpr auto kAwake = std::chrono::microseconds(100);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Waits until ready(), awake at first and then on the condition, whose mutex `lock` holds.
template <class Ready>
void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
          const Ready& ready) {
  if (ready()) return;
  lock.unlock();
  const auto end = Clock::now() + kAwake;
  while (!ready() && Clock::now() < end) {
    for (int i = 0; i < 16 && !ready(); ++i) pause();
  }
  lock.lock();
  condition.wait(lock, ready);
}

}  // namespace

struct Crew::Job {
  const std::function<void(int64_t)>& body;
  TaskShares shares;
  int wanted;  // helpers that may still join; guarded by the crew's mutex
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

void Crew::run(int64_t tasks, int helpers, const std::function<void(int64_t)>& body) {
  helpers = static_cast<int>(std::min<int64_t>(helpers, tasks - 1));
  if (helpers <= 0) return InlineTasks().run(tasks, body);
  Job job(body, tasks, helpers);
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(&job);
    ++open_jobs_;
  }
  job_came_.notify_all();
  job.work(0);
  std::unique_lock lock(mutex_);
  close(&job);
  wait(lock, helper_left_, [&job] { return job.helpers.load(std::memory_order_acquire) == 0; });
  lock.unlock();
  if (job.error) std::rethrow_exception(job.error);
}

void Crew::help(int number) {
  std::unique_lock lock(mutex_);
  while (true) {
    wait(lock, job_came_, [this] { return open_jobs_.load(std::memory_order_relaxed) > 0; });
    if (dismissed_) return;
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

void Crew::dismiss() {
  {
    const std::lock_guard lock(mutex_);
    dismissed_ = true;
    ++open_jobs_;
  }
  job_came_.notify_all();
}

// No more helpers for this job.
void Crew::close(Job* job) {
  const auto found = std::find(jobs_.begin(), jobs_.end(), job);
  if (found == jobs_.end()) return;
  jobs_.erase(found);
  --open_jobs_;
}

}  // namespace fastseg::cpu
