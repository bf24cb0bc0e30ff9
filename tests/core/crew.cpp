// Threads of a crew that are late, held or fail: csrc/cpu/threads. Ends with an error where a check
// does not hold; a pass that waits for what it need not never ends.

#include "cpu/threads/crew.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/threads/joint_pass.h"

namespace {

using fastseg::cpu::Crew;
using fastseg::cpu::CrewTasks;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::exit(1);
}

// How often each task ran.
struct Counts {
  explicit Counts(int64_t tasks) : of(tasks) {}
  bool all_once() const {
    for (const auto& count : of) {
      if (count != 1) return false;
    }
    return true;
  }
  std::vector<std::atomic<int>> of;
};

void nobody_comes() {
  Crew crew;
  Counts counts(100);
  crew.run(100, 3, [&](int64_t i) { ++counts.of[i]; });
  check(counts.all_once(), "the caller alone runs each task once");
}

// A helper is held in its first task until all others are done: those dealt to it, too.
void held_in_a_task() {
  Crew crew;
  std::thread helper([&] { crew.help(1); });
  const auto caller = std::this_thread::get_id();
  for (int round = 0; round < 50; ++round) {
    constexpr int64_t kTasks = 64;
    Counts counts(kTasks);
    std::binary_semaphore held(0), others_done(0);
    std::atomic<int64_t> by_caller{0};
    crew.run(kTasks, 1, [&](int64_t i) {
      ++counts.of[i];
      if (std::this_thread::get_id() != caller) {
        held.release();
        others_done.acquire();
        return;
      }
      if (by_caller == 0) held.acquire();
      if (++by_caller == kTasks - 1) others_done.release();
    });
    check(counts.all_once(), "each task runs once");
    check(by_caller == kTasks - 1, "the caller takes over what a held helper was dealt");
  }
  crew.dismiss();
  helper.join();
}

// A helper that has none of a caller's tasks does not keep the caller.
void held_elsewhere() {
  Crew crew;
  std::thread helper([&] { crew.help(1); });
  std::binary_semaphore held(0), second_done(0);
  std::thread first([&] {
    const auto caller = std::this_thread::get_id();
    crew.run(2, 1, [&](int64_t) {
      if (std::this_thread::get_id() == caller) return second_done.acquire(), second_done.release();
      held.release();
      second_done.acquire(), second_done.release();
    });
  });
  held.acquire();
  Counts counts(100);
  crew.run(100, 1, [&](int64_t i) { ++counts.of[i]; });
  check(counts.all_once(), "the second caller runs each task once");
  second_done.release();
  first.join();
  crew.dismiss();
  helper.join();
}

void failures() {
  Crew crew;
  std::vector<std::thread> helpers;
  for (int k = 1; k <= 3; ++k) helpers.emplace_back([&crew, k] { crew.help(k); });
  for (int round = 0; round < 200; ++round) {
    std::string message;
    std::atomic<int> running{0};
    try {
      crew.run(50, 3, [&](int64_t i) {
        ++running;
        if (i == round % 50) {
          --running;
          throw std::runtime_error("task " + std::to_string(i));
        }
        --running;
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
      check(running == 0, "no task runs once the error is there");
    }
    check(message == "task " + std::to_string(round % 50), "a task's error reaches the caller");
    Counts counts(50);
    crew.run(50, 3, [&](int64_t i) { ++counts.of[i]; });
    check(counts.all_once(), "after an error each task of the next pass runs once");
  }
  crew.dismiss();
  for (std::thread& helper : helpers) helper.join();
}

void joint_pass() {
  Crew crew;
  std::thread helper([&] { crew.help(1); });
  Counts few(3), many(300);
  int64_t position = -1;           // in the order of one thread, or -1
  std::vector<int64_t> positions;  // of the few
  fastseg::cpu::JointPass pass;
  pass.add(0, [](int64_t) { check(false, "no task of none runs"); });
  pass.add(3, [&](int64_t i) {
    ++few.of[i];
    if (position >= 0) positions.push_back(position);
  });
  pass.add(300, [&](int64_t i) { ++many.of[i]; });
  pass.run(CrewTasks(crew, 1));
  check(few.all_once() && many.all_once(), "each task of each kind runs once");

  struct InOrder final : fastseg::cpu::TaskRunner {
    explicit InOrder(int64_t& at) : at(at) {}
    void run(int64_t tasks, const std::function<void(int64_t)>& body) const override {
      for (at = 0; at < tasks; ++at) body(at);
    }
    int64_t& at;
  };
  pass.run(InOrder(position));
  check(positions.size() == 3, "three of them");
  for (int k = 0; k < 3; ++k) {
    check(positions[k] / 101 == k, "each third of a pass has a third of each kind");
  }
  crew.dismiss();
  helper.join();
}

}  // namespace

int main() {
  nobody_comes();
  held_in_a_task();
  held_elsewhere();
  failures();
  joint_pass();
}
