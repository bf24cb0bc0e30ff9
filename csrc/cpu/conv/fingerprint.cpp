// A fingerprint of memory that tells whether somebody wrote to it, for caches of what was computed
// from it: tensors count the writes that torch knows of, but not those through tensor.data, numpy
// or memory that is shared with another process. So every byte is read, on all threads. Bytes: all,
// once. A network's weights are in no near cache by the time of their next call: from four places
// at once, each asked for ahead, they come twice as fast as from one.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Each of a stream's 4 chains takes 16 bytes of a line in turn, and a step of one is a product of
// 64 bits (as in wyhash, by Wang Yi): one chain would wait for its products, 4 cycles each.
constexpr int kStreams = 4, kChains = 4;
constexpr int64_t kLine = 16 * kChains;
constexpr int64_t kAhead = 16 * kLine;
constexpr uint64_t kKeys[kStreams * kChains] = {
    0xa0761d6478bd642f, 0xe7037ed1a0b428db, 0x8ebc6af09c88c6e3, 0x589965cc75374cc3,
    0x1d8e4e27c47d124f, 0xeb44accab455d165, 0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f,
    0x2545f4914f6cdd1d, 0xd6e8feb86659fd93, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb,
    0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53, 0x87c37b91114253d5, 0x4cf5ad432745937f};

// Blocks have fingerprints of their own, so that these do not depend on the number of threads.
constexpr int64_t kBlock = int64_t{1} << 18;

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t fingerprint_of_block(const char* memory, int64_t bytes) {
  uint64_t chains[kStreams * kChains];
  std::copy_n(kKeys, kStreams * kChains, chains);
  const auto take_line = [&](int stream, const char* from) {
    for (int i = stream * kChains; i < (stream + 1) * kChains; ++i) {
      uint64_t words[2];
      std::memcpy(words, from + i % kChains * 16, 16);
      chains[i] = mix(words[0] ^ kKeys[i], words[1] ^ chains[i]);
    }
  };
  const int64_t stretch = bytes / (kStreams * kLine) * kLine;  // of a stream
  for (int64_t at = 0; at < stretch; at += kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const char* const from = memory + s * stretch + at;
      __builtin_prefetch(from + kAhead);
      take_line(s, from);
    }
  }
  int64_t at = kStreams * stretch;
  for (; at + kLine <= bytes; at += kLine) take_line(0, memory + at);
  if (at < bytes) {
    char rest[kLine] = {};
    std::memcpy(rest, memory + at, bytes - at);
    take_line(0, rest);
  }
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (int i = 0; i < kStreams * kChains; ++i) hash = mix(hash ^ chains[i], kKeys[i]);
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
