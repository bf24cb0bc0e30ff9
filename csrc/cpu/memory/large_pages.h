#pragma once
// Large pages for memory that is written for the first time.

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastseg::cpu {

// Asks for pages of 2 MB, before anybody writes to the memory: to fault in fresh memory page by
// page of 4 KB takes longer than many an op that fills it (44 MB: 15 ms, and 3 ms in large pages).
// A kernel that has none ignores it; so it is for memory below 2 MB.
inline void advise_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kLeast = 2 << 20, kPage = 4096;
  if (bytes < kLeast) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace fastseg::cpu
