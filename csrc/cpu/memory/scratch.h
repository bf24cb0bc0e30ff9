#pragma once
// A thread's memory for tasks, kept from call to call: to fault it in anew costs as much as a small
// convolution.

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/memory/large_pages.h"

namespace fastseg::cpu {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // At least so many floats of any content, aligned to 64 bytes and more.
  float* get(int64_t floats) {
    if (floats > size_) {
      std::free(memory_);
      size_ = 0;
      constexpr size_t kLargePage = size_t{2} << 20;
      const size_t bytes = (floats * sizeof(float) + kLargePage - 1) / kLargePage * kLargePage;
      memory_ = static_cast<float*>(std::aligned_alloc(kLargePage, bytes));
      if (!memory_) throw std::bad_alloc();
      advise_large_pages(memory_, bytes);
      size_ = bytes / sizeof(float);
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fastseg::cpu
