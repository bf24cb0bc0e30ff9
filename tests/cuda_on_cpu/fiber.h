#pragma once
// The stacks that the threads of a kernel run on, one after the other on one processor.

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Keeps what a function must keep for its caller, and goes on where the other stack was left:
// swapcontext asks the system each time, this does not.
extern "C" void cuda_on_cpu_switch_stacks(void** kept, void* other);
asm(R"(
  .pushsection .text
  .type cuda_on_cpu_switch_stacks, @function
  .hidden cuda_on_cpu_switch_stacks
  .globl cuda_on_cpu_switch_stacks
cuda_on_cpu_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size cuda_on_cpu_switch_stacks, . - cuda_on_cpu_switch_stacks
  .popsection
)");
#endif

namespace cuda_on_cpu {

constexpr size_t kStackBytes = 64 << 10;
constexpr char kGarbage = 0x7f;  // as float 3e38

// A stack that threads run on. Launches use the same ones, since new memory takes longer than most
// of them: what a launch has left there, another finds overwritten.
class Fiber {
 public:
  // The one that the host runs on.
  Fiber() = default;

  explicit Fiber(void (*run)()) : run_(run), stack_(new char[kStackBytes]) {
    std::fill_n(stack_.get(), kStackBytes, kGarbage);
  }

  // Makes the next switch go to where the fiber begins, whatever it was left in.
  void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_.get(), kStackBytes);
#endif
    overwrite();
#if defined(__x86_64__)
    // What switch_stacks pops, the function to which it returns, and no caller.
    auto** top =
        reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(run_);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    place_ = top;
#else
    getcontext(&place_);
    place_.uc_stack.ss_sp = stack_.get();
    place_.uc_stack.ss_size = kStackBytes;
    makecontext(&place_, run_, 0);
#endif
  }

  void switch_to(Fiber& to) {
    last_left = this;
#if defined(__SANITIZE_ADDRESS__)
    const bool home = to.stack_ == nullptr;
    __sanitizer_start_switch_fiber(&fake_stack_, home ? to.bottom_ : to.stack_.get(),
                                   home ? to.bytes_ : kStackBytes);
#endif
#if defined(__x86_64__)
    cuda_on_cpu_switch_stacks(&place_, to.place_);
#else
    swapcontext(&place_, &to.place_);
#endif
    arrive();
  }

  // What a fiber that goes on does first.
  void arrive() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &last_left->bottom_, &last_left->bytes_);
#endif
  }

  const char* stack() const { return stack_.get(); }

 private:
  // Of a stack, threads take the last kilobytes alone.
  void overwrite() {
    constexpr size_t kPart = 1 << 10;
    for (char* part = stack_.get() + kStackBytes; part > stack_.get();) {
      part -= kPart;
      const bool all_alike = std::memcmp(part, part + 1, kPart - 1) == 0;
      if (all_alike && *part == kGarbage) return;
      std::fill_n(part, kPart, kGarbage);
    }
  }

  static inline Fiber* last_left = nullptr;

  void (*run_)() = nullptr;
  std::unique_ptr<char[]> stack_;
#if defined(__x86_64__)
  void* place_ = nullptr;
#else
  ucontext_t place_{};
#endif
  // AddressSanitizer's.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cuda_on_cpu
