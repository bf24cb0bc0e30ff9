// A fingerprint of memory that tells whether somebody wrote to it, for caches of what was computed
// from it: tensors count the writes that torch knows of, but not those through tensor.data.

#include <cstdint>
#include <cstring>

namespace {

// One line of 64 bytes in each page of 4 KB: a write to all values, as an optimizer or a moving
// average makes it, cannot miss them.
constexpr int64_t kLine = 64, kPage = 4096;

uint64_t mix(uint64_t hash, const char* line, int64_t bytes) {
  for (int64_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, line + i, 8);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

// For Python (fastseg/_prepared_weights.py), by ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t fastseg_fingerprint(const char* memory,
                                                                               int64_t bytes) {
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int64_t at = 0; at < bytes; at += kPage) {
    const int64_t left = bytes - at;
    hash = mix(hash, memory + at, left < kLine ? left : kLine);
  }
  const int64_t tail = bytes < kLine ? 0 : bytes - kLine;
  return mix(hash, memory + tail, bytes - tail);
}
