#pragma once
// Sequential writes of one thread's share of an output, past the caches where it is large.
//
// A plain store first reads the cache line that it overwrites, so an output much larger than the
// cache costs twice its bytes. Non-temporal stores avoid the read but are slow unless they fill
// whole 64-byte lines in order, which rows of arbitrary width do not. So a streaming writer
// collects elements in a small buffer that stays in the L1 cache and sends out whole lines.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class T>
class RowWriter {
 public:
  // The most elements that one reserve() may ask for.
  static constexpr int64_t kMaxReserve = 1024;

  RowWriter(T* begin, bool stream) : out_(begin), stream_(stream) {
    if (stream_) head_ = fill_ = reinterpret_cast<uintptr_t>(begin) % kLine;
  }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;
  ~RowWriter() {
    if (stream_) flush(/*all=*/true);
  }

  // Room for the next n elements; they are written when the caller fills it and calls advance(n).
  T* reserve(int64_t n) {
    if (!stream_) return out_;
    if (fill_ + n * kSize > kCapacity) flush(/*all=*/false);
    return reinterpret_cast<T*>(buffer_ + fill_);
  }

  void advance(int64_t n) {
    if (stream_) {
      fill_ += n * kSize;
    } else {
      out_ += n;
    }
  }

  void zeros(int64_t n) {
    while (n > 0) {
      const int64_t m = std::min(n, kMaxReserve);
      std::memset(static_cast<void*>(reserve(m)), 0, m * kSize);
      advance(m);
      n -= m;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kSize = sizeof(T);
  static constexpr int64_t kCapacity = kLine + kMaxReserve * std::max<int64_t>(kSize, 4);

  // The buffer mirrors memory from the line that holds out_: byte head_ of it is *out_.
  void flush(bool all) {
    unsigned char* line = reinterpret_cast<unsigned char*>(out_) - head_;
    int64_t sent = 0;
    if (head_ != 0 && fill_ >= kLine) {  // the first line is shared with the previous thread
      std::memcpy(line + head_, buffer_ + head_, kLine - head_);
      sent = kLine;
      head_ = 0;
    }
    for (; sent + kLine <= fill_; sent += kLine) stream_line(line + sent, buffer_ + sent);
    if (all) {
      std::memcpy(line + sent + head_, buffer_ + sent + head_, fill_ - sent - head_);
      fence();
      return;
    }
    std::memmove(buffer_, buffer_ + sent, fill_ - sent);
    fill_ -= sent;
    out_ = reinterpret_cast<T*>(line + sent + head_);
  }

  static void stream_line(unsigned char* to, const unsigned char* from) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(from));
#elif defined(__AVX2__)
    for (int i = 0; i < 2; ++i) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i,
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(from) + i));
    }
#elif defined(__SSE2__)
    for (int i = 0; i < 4; ++i) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i,
                       _mm_load_si128(reinterpret_cast<const __m128i*>(from) + i));
    }
#else
    std::memcpy(to, from, kLine);
#endif
  }
  static void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }

  T* out_;
  const bool stream_;
  int64_t head_ = 0;
  int64_t fill_ = 0;
  alignas(64) unsigned char buffer_[kCapacity];
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
