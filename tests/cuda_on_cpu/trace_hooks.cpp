// The functions that g++'s -fsanitize=thread calls at accesses to memory, in place of its runtime.

#include "cuda_on_cpu.h"

namespace {

using cuda_on_cpu::trace::access;
using cuda_on_cpu::trace::kLoad;
using cuda_on_cpu::trace::kStore;
using cuda_on_cpu::trace::volatile_load;

constexpr unsigned long kVectorBytes = 16;

// A copy of a struct goes through vectors of 16 bytes.
void access_range(cuda_on_cpu::trace::Kind kind, const char* p, unsigned long bytes,
                  const void* place) {
  for (unsigned long i = 0; i < bytes; i += kVectorBytes) {
    const unsigned long left = bytes - i < kVectorBytes ? bytes - i : kVectorBytes;
    access(kind, p + i, static_cast<int>(left), place);
  }
}

}  // namespace

#define PLACE __builtin_return_address(0)
#define HOOKS(n)                                                           \
  void __tsan_read##n(void* p) { access(kLoad, p, n, PLACE); }             \
  void __tsan_write##n(void* p) { access(kStore, p, n, PLACE); }           \
  void __tsan_unaligned_read##n(void* p) { access(kLoad, p, n, PLACE); }   \
  void __tsan_unaligned_write##n(void* p) { access(kStore, p, n, PLACE); } \
  void __tsan_volatile_read##n(void* p) { volatile_load(p, n, PLACE); }    \
  void __tsan_volatile_write##n(void* p) { access(kStore, p, n, PLACE); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, unsigned long n) {
  access_range(kLoad, static_cast<char*>(p), n, PLACE);
}
void __tsan_write_range(void* p, unsigned long n) {
  access_range(kStore, static_cast<char*>(p), n, PLACE);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
