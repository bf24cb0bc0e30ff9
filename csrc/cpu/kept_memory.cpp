#include "cpu/kept_memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/large_pages.h"

#if defined(__unix__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastseg::cpu {
namespace {

constexpr int64_t kLine = 64, kPage = int64_t{1} << 16, kLargePage = int64_t{2} << 20;

struct Block {
  void* memory;
  int64_t bytes;
};

// Whole large pages where those waste little.
int64_t block_size(int64_t bytes) {
  const int64_t unit = bytes < kLeastKept ? kLine : bytes < 8 * kLargePage ? kPage : kLargePage;
  return (bytes + unit - 1) / unit * unit;
}

int64_t most_kept() {
  int64_t most = int64_t{1} << 30;
#if defined(__unix__)
  most = std::min(most, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE) / 16);
#endif
  return most;
}

// The system may take the pages of a block that holds nothing; those that it leaves can be written
// to without a fault.
void offer_to_system(const Block& block) {
#if defined(__linux__) && defined(MADV_FREE)
  if (block.bytes >= kLargePage) madvise(block.memory, block.bytes / kPage * kPage, MADV_FREE);
#else
  (void)block;
#endif
}

class Keeper {
 public:
  Keeper();

  // The smallest block that serves and wastes no more than a quarter, or null.
  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const bool serves = block->bytes >= bytes && block->bytes <= bytes + bytes / 4;
      if (serves && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
    }
    if (best == blocks_.end()) return nullptr;
    void* const memory = best->memory;
    bytes_ -= best->bytes;
    blocks_.erase(best);
    return memory;
  }

  // The oldest blocks go where this one is too much.
  void give(const Block& block) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back(block);
    bytes_ += block.bytes;
    auto end = blocks_.begin();
    for (; bytes_ > most_; ++end) {
      std::free(end->memory);
      bytes_ -= end->bytes;
    }
    blocks_.erase(blocks_.begin(), end);
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    for (const Block& block : blocks_) std::free(block.memory);
    blocks_.clear();
    bytes_ = 0;
  }

  std::mutex mutex_;

 private:
  const int64_t most_ = most_kept();
  std::vector<Block> blocks_;  // the oldest first
  int64_t bytes_ = 0;
};

// Made as the library is loaded and never destroyed: tensors may outlive statics.
Keeper* const keeper = new Keeper;

Keeper::Keeper() {
#if defined(__unix__)
  // No thread is inside while the process forks, so that the child finds all in order.
  pthread_atfork([] { keeper->mutex_.lock(); }, [] { keeper->mutex_.unlock(); },
                 [] { keeper->mutex_.unlock(); });
#endif
}

void* allocate(int64_t bytes) {
  const bool large = bytes >= kLargePage;
  void* memory = nullptr;
#if defined(__unix__)
  if (posix_memalign(&memory, large ? kLargePage : kLine, bytes) != 0) return nullptr;
#else
  memory = std::aligned_alloc(kLine, bytes);
#endif
  if (memory != nullptr) advise_large_pages(memory, bytes);
  return memory;
}

}  // namespace

void* take_memory(int64_t bytes) {
  const int64_t size = block_size(std::max<int64_t>(bytes, 1));
  void* memory = size < kLeastKept ? nullptr : keeper->take(size);
  if (memory == nullptr) memory = allocate(size);
  if (memory == nullptr) {
    release_memory();
    memory = allocate(size);
  }
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void give_memory(void* memory, int64_t bytes) noexcept {
  const Block block{memory, block_size(std::max<int64_t>(bytes, 1))};
  if (block.bytes < kLeastKept) return std::free(memory);
  offer_to_system(block);
  try {
    keeper->give(block);
  } catch (const std::bad_alloc&) {  // of the list, before the block is in it
    std::free(memory);
  }
}

int64_t kept_memory() { return keeper->bytes(); }

void release_memory() { keeper->release(); }

}  // namespace fastseg::cpu

// For Python (fastseg/_extension.py), by ctypes.
extern "C" {
__attribute__((visibility("default"))) int64_t fastseg_kept_memory() {
  return fastseg::cpu::kept_memory();
}
__attribute__((visibility("default"))) void fastseg_release_memory() {
  fastseg::cpu::release_memory();
}
}
