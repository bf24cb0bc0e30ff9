// A fingerprint of memory that tells whether somebody wrote to it, for caches of what was computed
// from it: tensors count the writes that torch knows of, but not those through tensor.data.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// 256 lines of 64 bytes, spread evenly: a write to all values, as an optimizer or a moving average
// makes it, cannot miss them, and 20 MB of weights take some 10 microseconds.
constexpr int64_t kLine = 64, kLines = 256;

uint64_t mix(uint64_t hash, const char* line, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, line + i, std::min<int64_t>(8, bytes - i));
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

uint64_t fingerprint(uint64_t hash, const char* memory, int64_t bytes) {
  hash = (hash ^ static_cast<uint64_t>(bytes)) * 0x9e3779b97f4a7c15u;
  const int64_t step = std::max(kLine, bytes / kLines / kLine * kLine);
  for (int64_t at = 0; at < bytes; at += step) {
    hash = mix(hash, memory + at, std::min(kLine, bytes - at));
  }
  return hash;
}

}  // namespace

// Of several pieces of memory. For Python (fastseg/_prepared_weights.py), by ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t
fastseg_fingerprint(const char* const* memory, const int64_t* bytes, int64_t count) {
  uint64_t hash = 0;
  for (int64_t i = 0; i < count; ++i) hash = fingerprint(hash, memory[i], bytes[i]);
  return hash;
}
