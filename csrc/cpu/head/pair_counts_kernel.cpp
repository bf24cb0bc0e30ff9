// Counts of pairs (true class, predicted class), 64 pixels at a time.
//
// Label maps are constant over long runs. The pixels that differ from the one before are the bits
// of two comparisons; most vectors have none, and a run is added once, when it ends. In a vector of
// many runs pixels are added one by one.
//
// Floor: the bytes of both maps, read once. Of int64 maps, 16 bytes a pixel, they are most of the
// time. Of uint8 maps a pixel takes a core 0.1 ns in a constant map, 0.3 ns where a run ends every
// 30 pixels and 0.7 ns in noise.

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/head/pair_counts.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int kPixels = 64;  // of a vector: a bit each of a mask

// The lanes of p that differ from those of q, as bits.
uint64_t different_bits(const uint8_t* p, const uint8_t* q) {
#if defined(__AVX512BW__)
  return _mm512_cmpneq_epi8_mask(read<__m512i>(p), read<__m512i>(q));
#elif defined(__AVX2__)
  const auto equal = [&](int i) {
    const __m256i same = _mm256_cmpeq_epi8(read<__m256i>(p + i), read<__m256i>(q + i));
    return static_cast<uint32_t>(_mm256_movemask_epi8(same));
  };
  return ~(equal(0) | uint64_t{equal(32)} << 32);
#else
  using Bytes = Lanes<uint8_t, 16>;
  uint64_t bits = 0;
  for (int i = 0; i < kPixels; i += 16) {
    uint64_t words[2];
    write(words, read<Bytes>(p + i) != read<Bytes>(q + i));
    for (int w = 0; w < 2; ++w) {  // bit k of the product's top byte is byte k's
      const uint64_t byte = (words[w] & 0x8040201008040201) * 0x0101010101010101 >> 56;
      bits |= byte << (i + 8 * w);
    }
  }
  return bits;
#endif
}

// Bytes of the slots of n neighbours.
template <class T>
void bytes_of_neighbours(const T* from, int64_t n, const ClassIds& ids, uint8_t* to) {
  using U = std::make_unsigned_t<T>;
  constexpr int L = FASTSEG_SIMD_BYTES / static_cast<int>(sizeof(T));
  using V = Lanes<U, L>;
  // A negative id is a large one without its sign.
  constexpr int64_t kLargest = std::numeric_limits<T>::max();
  const U end = static_cast<U>(std::min(ids.count, kLargest + (sizeof(T) < 8)));
  const bool ignores = ids.ignores && static_cast<T>(ids.ignore) == ids.ignore;
  const U ignore = static_cast<U>(ids.ignore);
  const U none = static_cast<U>(ids.none());
  const U ignored = ignores ? static_cast<U>(ids.ignored()) : none;
  // Where nothing is ignored the last id of all types, which is no class, stands in.
  const U last = ignores ? ignore : std::numeric_limits<U>::max();
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const V v = read<V>(from + i);
    const V slot = v < end ? v : none - V{};
    store_bytes<U, L>(to + i, v == last ? ignored - V{} : slot);
  }
  for (; i < n; ++i) to[i] = static_cast<uint8_t>(ids.slot(from[i]));
}

// Adds 64 pixels one by one.
void add_each(const uint8_t* prediction, const uint8_t* target, const PairTable& table) {
  constexpr int L = FASTSEG_SIMD_BYTES / 2;
  using Index = Lanes<uint16_t, L>;
  alignas(64) uint16_t index[kPixels];
  for (int i = 0; i < kPixels; i += L) {
    const Index t = load_bytes<uint16_t, L>(target + i);
    const Index p = load_bytes<uint16_t, L>(prediction + i);
    write(index + i, t * static_cast<uint16_t>(table.side) + p);
  }
  uint32_t* counts = table.counts;
  const int64_t copy = table.copy;
  for (int i = 0; i < kPixels; i += 4) {
    ++counts[index[i]];
    ++counts[copy + index[i + 1]];
    ++counts[2 * copy + index[i + 2]];
    ++counts[3 * copy + index[i + 3]];
  }
}

void add_slots(const uint8_t* prediction, const uint8_t* target, int64_t n,
               const PairTable& table) {
  constexpr int kFewRuns = 4;    // in a vector
  constexpr int kManyRuns = 20;  // more are slower than one pixel after another
  uint32_t* counts = table.counts;
  const auto pair = [&](int64_t i) { return target[i] * table.side + prediction[i]; };
  int64_t begin = 0, i = 1;  // of the run that goes on; of the next pixel
  const auto end_run = [&](int64_t end) {
    counts[pair(begin)] += static_cast<uint32_t>(end - begin);
    begin = end;
  };
  for (; i + kPixels < n; i += kPixels) {
    uint64_t changes = different_bits(prediction + i, prediction + i - 1) |
                       different_bits(target + i, target + i - 1);
    if (changes == 0) continue;
    const int runs = std::popcount(changes);
    if (runs <= kFewRuns) {  // no branch to foresee: what is missing ends with the vector, empty
      for (int k = 0; k < kFewRuns; ++k, changes &= changes - 1) {
        end_run(i + std::countr_zero(changes));
      }
      continue;
    }
    if (runs > kManyRuns) {
      end_run(i);
      add_each(prediction + i, target + i, table);
      begin = i + kPixels;
      continue;
    }
    for (; changes != 0; changes &= changes - 1) end_run(i + std::countr_zero(changes));
  }
  for (; i < n; ++i) {
    if (pair(i) != pair(begin)) end_run(i);
  }
  if (begin < n) end_run(n);
}

}  // namespace

void class_bytes(const IdRun& run, int64_t n, const ClassIds& ids, uint8_t* slots) {
  dispatch_id(run.type, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(run.data);
    if (run.stride == 1) return bytes_of_neighbours(from, n, ids, slots);
    for (int64_t i = 0; i < n; ++i) {
      slots[i] = static_cast<uint8_t>(ids.slot(from[i * run.stride]));
    }
  });
}

void add_pairs(const uint8_t* prediction, const IdRun& target, int64_t n, const PairTable& table) {
  constexpr int64_t kBlock = 4096;  // stays in a first-level cache
  uint8_t slots[kBlock];
  const auto* first = static_cast<const char*>(target.data);
  const int64_t step = target.stride * id_bytes(target.type);
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t size = std::min(kBlock, n - i);
    class_bytes({first + i * step, target.type, target.stride}, size, table.ids, slots);
    add_slots(prediction + i, slots, size, table);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
