#pragma once
// Huge pages for large outputs.
//
// malloc takes what is larger than 32 MB from the system for every call anew, and the system hands
// it out page by page at the first write: of 4 KB, that takes six times as long as to write 35 MB
// that are there. Where it leaves the choice to programs, an output asks for pages of 2 MB.

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu/parallel.h"

namespace fastseg::cpu {

inline void prefer_huge_pages(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!outgrows_cache(bytes)) return;
  const uintptr_t page = sysconf(_SC_PAGESIZE), address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + page - 1) / page * page;
  // A hint: where the system refuses it, the pages stay small.
  (void)madvise(reinterpret_cast<void*>(first), address + bytes - first, MADV_HUGEPAGE);
#endif
}

}  // namespace fastseg::cpu
