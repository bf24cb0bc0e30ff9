#pragma once
// Memory of large outputs and buffers, kept when it is freed for the next of about its size.
//
// The C library returns every large block to the system, and the system hands out pages one by one,
// cleared: to fault 44 MB in takes 15 ms or more, in large pages 3, where an op fills them in 2.
// What is kept here is bounded, by 1 GiB and a sixteenth of the memory that there is; blocks that
// nobody has wanted for a second are the system's to take back when it is short of memory, from the
// next time on that one is given back; and release_memory() frees all at once.
//
// Safe under threads; a forked child begins with what its parent had kept, pages that are copied
// when somebody writes to them.

#include <cstdint>

namespace fastseg::cpu {

// Smaller blocks the C library uses again itself.
inline constexpr int64_t kLeastKept = int64_t{1} << 19;

// Memory of any content for at least so many bytes, aligned to 64; throws std::bad_alloc. It is
// returned by give_memory with the same number of bytes, or by nobody.
void* take_memory(int64_t bytes);
void give_memory(void* memory, int64_t bytes) noexcept;

// Bytes that are kept.
int64_t kept_memory();

// Returns them to the system.
void release_memory();

}  // namespace fastseg::cpu
