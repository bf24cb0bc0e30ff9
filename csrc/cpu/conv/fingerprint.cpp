// A fingerprint of memory that tells whether somebody wrote to it, for caches of what was computed
// from it: tensors count the writes that torch knows of, but not those through tensor.data, numpy
// or memory that is shared with another process. So every byte is read, on all threads: at 25 GB/s
// a thread out of a cache, at the memory's speed beyond.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Each of 8 chains takes 16 bytes in turn, and a step of one is a product of 64 bits (as in wyhash,
// by Wang Yi): one chain would wait for its products, 4 cycles each.
constexpr int kChains = 8;
constexpr int64_t kStep = 16 * kChains;
constexpr uint64_t kKeys[kChains] = {0xa0761d6478bd642f, 0xe7037ed1a0b428db, 0x8ebc6af09c88c6e3,
                                     0x589965cc75374cc3, 0x1d8e4e27c47d124f, 0xeb44accab455d165,
                                     0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f};

// Blocks have fingerprints of their own, so that these do not depend on the number of threads.
constexpr int64_t kBlock = int64_t{1} << 18;

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t fingerprint_of_block(const char* memory, int64_t bytes) {
  uint64_t chains[kChains];
  std::copy_n(kKeys, kChains, chains);
  const auto step = [&](const char* from) {
    for (int i = 0; i < kChains; ++i) {
      uint64_t words[2];
      std::memcpy(words, from + 16 * i, 16);
      chains[i] = mix(words[0] ^ kKeys[i], words[1] ^ chains[i]);
    }
  };
  int64_t at = 0;
  for (; at + kStep <= bytes; at += kStep) step(memory + at);
  if (at < bytes) {
    char rest[kStep] = {};
    std::memcpy(rest, memory + at, bytes - at);
    step(rest);
  }
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int i = 0; i < kChains; ++i) hash = mix(hash ^ chains[i], kKeys[i]);
  return hash;
}

}  // namespace

// Of several pieces of memory. For Python (fastseg/ops/conv/prepared_weights.py), by ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t
fastseg_fingerprint(const char* const* memory, const int64_t* bytes, int64_t count) {
  uint64_t hash = static_cast<uint64_t>(count);
  for (int64_t i = 0; i < count; ++i) {
    if (bytes[i] <= kBlock) {
      hash = mix(hash ^ fingerprint_of_block(memory[i], bytes[i]), kKeys[0]);
      continue;
    }
    std::vector<uint64_t> blocks((bytes[i] + kBlock - 1) / kBlock);
    torch::stable::parallel_for(
        0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * kBlock;
            blocks[b] = fingerprint_of_block(memory[i] + at, std::min(kBlock, bytes[i] - at));
          }
        });
    for (const uint64_t block : blocks) hash = mix(hash ^ block, kKeys[0]);
  }
  return hash;
}
