// The scheduler of cuda_on_cpu.h, and the runtime functions that the launchers call.

#include "cuda_on_cpu.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "fiber.h"

namespace cuda_on_cpu {
namespace {

constexpr int kWarp = 32;

bool launch_failed = false;
std::string failure;  // of the last launch that failed

constexpr size_t kDefaultShared = 48 << 10;
std::unordered_map<const void*, size_t> largest_shared;  // where cudaFuncSetAttribute raised it

// What a GPU says of a launch, or nullptr.
const char* refusal(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535) return "a grid that is too large";
  if (uint64_t{block.x} * block.y * block.z > 1024 || block.z > 64) return "too many threads";
  const auto raised = largest_shared.find(kernel);
  if (shared_bytes > (raised == largest_shared.end() ? kDefaultShared : raised->second)) {
    return "more shared memory than the kernel was allowed";
  }
  return nullptr;
}

struct Failure {};  // unwinds the thread that failed

enum class State { kNew, kRunning, kAtBarrier, kAtExchange, kDone };

std::vector<std::unique_ptr<Fiber>> fibers;  // of all launches

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  State state = State::kNew;
  Fiber* fiber = nullptr;
  int exchanges = 0;
  std::vector<Copy> copies{};  // begun and not waited for
};

// A lane may begin its next exchange before the others have read the last one's words.
struct Warp {
  uint64_t words[2][kWarp];
};

class Launch;
Launch* current = nullptr;

class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes, Body body)
      : shared(new unsigned char[shared_bytes]),  // exactly: AddressSanitizer sees its end
        body_(body),
        shared_bytes_(shared_bytes),
        count_(block.x * block.y * block.z) {
    place.block_size = block;
    place.grid_size = grid;
    threads_.resize(count_);
    warps_.resize((count_ + kWarp - 1) / kWarp);
    if (const char* order = std::getenv("CUDA_ON_CPU_ORDER")) order_name_ = order;
  }

  void run() {
    const dim3 g = place.grid_size;
    for (const unsigned b : shuffled_or_not(g.x * g.y * g.z)) {
      if (launch_failed) return;
      place.block_index = {b % g.x, b / g.x % g.y, b / (g.x * g.y)};
      trace::block_begins();
      run_block();
      trace::block_ends();
    }
  }

  // The calling thread waits until release().
  void wait(State state) {
    Thread& me = threads_[place.thread];
    me.state = state;
    me.fiber->switch_to(next());
  }

  const uint64_t* exchange(uint64_t word) {
    auto& words = warps_[place.thread / kWarp].words[threads_[place.thread].exchanges++ % 2];
    words[place.thread % kWarp] = word;
    wait(State::kAtExchange);
    return words;
  }

  std::vector<Copy>& copies() { return threads_[place.thread].copies; }

  size_t shared_bytes() const { return shared_bytes_; }

  Stack this_stack() const { return {threads_[place.thread].fiber->stack(), kStackBytes}; }

  Place place{};
  std::unique_ptr<unsigned char[]> shared;

 private:
  std::vector<int> shuffled_or_not(int n) {
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = order_name_ == "reverse" ? n - 1 - i : i;
    if (order_name_ == "shuffled") std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

  void run_block() {
    std::fill_n(shared.get(), shared_bytes_, 0xff);
    std::fill(threads_.begin(), threads_.end(), Thread{});
    order_ = shuffled_or_not(count_);
    begun_ = 0;
    gone_on_ = count_;
    for (;;) {
      home_.switch_to(next());
      if (launch_failed || all(0, count_, State::kDone) || !release()) return;
      order_ = shuffled_or_not(count_);
      gone_on_ = 0;
    }
  }

  // That of the thread whose turn it is, to which threads that wait or are done switch at once.
  Fiber& next() {
    if (launch_failed) return home_;
    if (begun_ < count_) {
      Fiber& fiber = idle_fiber();
      begin_thread(fiber);
      return fiber;
    }
    while (gone_on_ < count_) {
      const int i = order_[gone_on_++];
      if (threads_[i].state != State::kRunning) continue;
      move_to(i);
      return *threads_[i].fiber;
    }
    return home_;
  }

  void move_to(int thread) {
    const unsigned t = thread;
    const dim3 size = place.block_size;
    place.thread = thread;
    place.thread_index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
  }

  void begin_thread(Fiber& fiber) {
    move_to(order_[begun_++]);
    threads_[place.thread] = {State::kRunning, &fiber};
  }

  // Threads that never wait follow each other on one fiber, without a switch.
  void run_threads() {
    Fiber& me = *threads_[place.thread].fiber;
    me.arrive();
    for (;;) {
      for (;;) {
        try {
          body_();
        } catch (const Failure&) {
        }
        threads_[place.thread].state = State::kDone;
        if (launch_failed || begun_ == count_) break;
        begin_thread(me);
      }
      idle_.push_back(&me);
      me.switch_to(next());
    }
  }

  bool all(int begin, int end, State state) const {
    return std::all_of(threads_.begin() + begin, threads_.begin() + end,
                       [&](const Thread& t) { return t.state == state; });
  }

  // Lets those go on whose warp or block has come together.
  bool release() {
    bool released = false;
    const auto resume = [&](int begin, int end) {
      for (int i = begin; i < end; ++i) threads_[i].state = State::kRunning;
      released = true;
    };
    for (int w = 0; w < count_; w += kWarp) {
      const int end = std::min(count_, w + kWarp);
      if (all(w, end, State::kAtExchange)) resume(w, end);
    }
    if (all(0, count_, State::kAtBarrier)) resume(0, count_);
    if (!released) {
      launch_failed = true;
      failure = "threads wait for others that have left or wait elsewhere";
    }
    return released;
  }

  Fiber& idle_fiber() {
    if (!idle_.empty()) {
      Fiber& fiber = *idle_.back();
      idle_.pop_back();
      return fiber;
    }
    if (used_ == fibers.size()) fibers.push_back(std::make_unique<Fiber>(&Launch::run_on_fiber));
    Fiber& fiber = *fibers[used_++];
    fiber.begin();
    return fiber;
  }

  static void run_on_fiber() { current->run_threads(); }

  const Body body_;
  const size_t shared_bytes_;
  const int count_;  // threads of a block
  std::string order_name_ = "forward";
  std::mt19937 random_{1234};
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> order_;  // in which the threads begin or go on
  int begun_ = 0;           // of these
  int gone_on_ = 0;
  size_t used_ = 0;  // of the fibers
  std::vector<Fiber*> idle_;
  Fiber home_;  // the scheduler's own
};

}  // namespace

const Place& here() { return current->place; }
void* shared_memory() { return current->shared.get(); }
size_t shared_bytes() { return current->shared_bytes(); }
Stack this_stack() { return current->this_stack(); }

void wait_for_block() {
  trace::barrier();
  current->wait(State::kAtBarrier);
}

const uint64_t* exchange(unsigned mask, uint64_t word) {
  if (mask != ~0u) fail("exchanges among a part of a warp are not supported");
  return current->exchange(word);
}

void copy_later(void* to, const void* from, size_t bytes) {
  current->copies().push_back({to, from, bytes});
}

void finish_copies() {
  for (const Copy& copy : current->copies()) std::memcpy(copy.to, copy.from, copy.bytes);
  current->copies().clear();
}

void fail(const std::string& message) {
  launch_failed = true;
  failure = message;
  throw Failure{};
}

void launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body) {
  if (const char* why = refusal(kernel, grid, block, shared_bytes)) {
    launch_failed = true;
    failure = std::string("invalid configuration: ") + why;
    return;
  }
  Launch launch(grid, block, shared_bytes, body);
  current = &launch;
  trace::launch_begins(kernel, grid, block, shared_bytes);
  launch.run();
  trace::launch_ends();
  current = nullptr;
}

}  // namespace cuda_on_cpu

// Of the bindings' ops (bindings.cpp).
#define CUDA_ON_CPU_TEXT_OF(name) #name
#define CUDA_ON_CPU_TEXT(name) CUDA_ON_CPU_TEXT_OF(name)
extern "C" const char* const cuda_on_cpu_ops = CUDA_ON_CPU_TEXT(CUDA_ON_CPU_OPS);

extern "C" cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_cpu::launch_failed ? cudaErrorAssert : cudaSuccess;
  cuda_on_cpu::launch_failed = false;
  return error;
}

extern "C" const char* cudaGetErrorString(cudaError_t) { return cuda_on_cpu::failure.c_str(); }

extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  const bool captures = std::getenv("CUDA_ON_CPU_CAPTURES") != nullptr;
  *status = captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

extern "C" cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  cuda_on_cpu::largest_shared[kernel] = bytes;
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  cuda_on_cpu::trace::copied("memset", bytes);
  std::memset(p, value, bytes);
  return cudaSuccess;
}

extern "C" cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                       cudaStream_t) {
  cuda_on_cpu::trace::copied("memcpy", bytes);
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t) {
  cuda_on_cpu::trace::synchronized();
  return cudaSuccess;
}
