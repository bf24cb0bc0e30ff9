#pragma once
// A kernel's own arrays, in memory that is kept for the next ones (cpu/memory/kept_memory.h). In
// large pages where they hold any: rows that are read in any order outrun the few hundred pages
// whose addresses a processor remembers.

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/memory/kept_memory.h"

namespace fastseg::cpu {

// Not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(take_memory(size * sizeof(T))), Give{size * int64_t{sizeof(T)}}) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  struct Give {
    int64_t bytes = 0;
    void operator()(T* memory) const { give_memory(memory, bytes); }
  };
  std::unique_ptr<T, Give> data_;
};

template <class T>
struct KeptAllocator {
  using value_type = T;
  KeptAllocator() = default;
  template <class U>
  KeptAllocator(const KeptAllocator<U>&) {}
  T* allocate(size_t size) { return static_cast<T*>(take_memory(size * sizeof(T))); }
  void deallocate(T* memory, size_t size) { give_memory(memory, size * sizeof(T)); }
  template <class U>
  bool operator==(const KeptAllocator<U>&) const {
    return true;
  }
};

// A vector for as many elements as there are points or vertices.
template <class T>
using LargeVector = std::vector<T, KeptAllocator<T>>;

}  // namespace fastseg::cpu
