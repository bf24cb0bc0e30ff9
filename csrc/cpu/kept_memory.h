#pragma once
// Memory of large outputs and buffers, kept when it is freed for the next of about its size.
//
// The C library returns every large block to the system, and the system hands out pages one by one,
// cleared: to fault 44 MB in takes 15 ms or more, in large pages 3, where an op fills them in 2. What
// is kept here is the system's to take back whenever it is short of memory (MADV_FREE), which costs
// next to nothing in large pages; it is bounded, and release_memory() frees it at once.
//
// Safe under threads; a forked child begins with what its parent had kept, pages that are copied
// when somebody writes to them.

#include <cstdint>

namespace fastseg::cpu {

inline constexpr int64_t kLeastKept = int64_t{1} << 19;  // smaller blocks the C library reuses itself

// Memory of any content for at least so many bytes, aligned to 64; throws std::bad_alloc. It is
// returned by give_memory with the same number of bytes, or by nobody.
void* take_memory(int64_t bytes);
void give_memory(void* memory, int64_t bytes) noexcept;

// Bytes that are kept.
int64_t kept_memory();

// Returns them to the system.
void release_memory();

}  // namespace fastseg::cpu
