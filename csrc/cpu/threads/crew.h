#pragma once
// Threads that run the tasks of one of them, pass after pass.
//
// A pass ends when its tasks are done: nobody waits for a thread that has none. Where another
// process keeps a thread from its processor, the others therefore take over what it has not begun;
// a barrier of all threads would wait for the scheduler in every pass.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>

#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

class Crew {
 public:
  Crew() = default;
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Runs body(i) once for each i in [0, tasks) on the calling thread and on up to `helpers` of
  // those that help meanwhile, and returns when none runs any more. An exception of a body reaches
  // the caller. Any number of threads may call at once.
  void run(int64_t tasks, int helpers, const std::function<void(int64_t)>& body);

  // Helps until dismissal whoever runs tasks. number, from 1: the stretch of tasks to begin with.
  void help(int number);

  // Sends all helpers away for good. Their last work on this object is to leave help().
  void dismiss();

 private:
  struct Job;
  void close(Job* job);

  std::mutex mutex_;
  std::condition_variable job_came_, helper_left_;
  std::deque<Job*> jobs_;          // that want helpers
  std::atomic<int> open_jobs_{0};  // their number, or more than that after dismissal
  bool dismissed_ = false;
};

// The calling thread and up to `helpers` of a crew.
class CrewTasks final : public TaskRunner {
 public:
  CrewTasks(Crew& crew, int helpers) : crew_(crew), helpers_(helpers) {}
  void run(int64_t tasks, const std::function<void(int64_t)>& body) const override {
    crew_.run(tasks, helpers_, body);
  }

 private:
  Crew& crew_;
  int helpers_;
};

}  // namespace fastseg::cpu
