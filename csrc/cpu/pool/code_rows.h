#pragma once
// The codes of a pooling, read row by row: unpacked where four share a byte, and checked.
//
// A code is good if it names a tap that falls inside the plane. A bad one raises a flag, which the
// op turns into an error when the threads have met; until then nothing is read or written through
// it.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/pool/packed_codes.h"
#include "common/pool/pool2d.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

struct Codes {
  const uint8_t* data;
  bool packed;
  std::atomic<bool>* bad;
};

}  // namespace fastseg::cpu

namespace fastseg::cpu::FASTSEG_SIMD {

// One thread's reader. A row is (w,) of a plane or, with `lanes` = C channels, (w, C) of an image.
class CodeRows {
 public:
  CodeRows(const Pool2d& pool, const Codes& codes, int64_t lanes)
      : pool_(pool),
        codes_(codes),
        lanes_(lanes),
        size_(pool.w.windows * lanes),
        whole_end_(pool.w.windows) {
    while (whole_begin_ < whole_end_ && !pool.w.whole(whole_begin_)) ++whole_begin_;
    while (whole_end_ > whole_begin_ && !pool.w.whole(whole_end_ - 1)) --whole_end_;
    tap_.fill({kNoTap, kNoTap});
    for (int code = 0; code < pool.taps(); ++code) {
      tap_[code] = {static_cast<uint16_t>(code / pool.w.kernel),
                    static_cast<uint16_t>(code % pool.w.kernel)};
    }
    for (int64_t i = 0; i < pool.h.windows; ++i) rows_.push_back(taps_of(pool.h, i));
    for (int64_t j = 0; j < pool.w.windows; ++j) columns_.push_back(taps_of(pool.w, j));
  }

  // The codes of row i of plane (or image) `plane`. Valid until the next call.
  const uint8_t* row(int64_t plane, int64_t i) {
    const int64_t index = plane * pool_.h.windows + i;
    if (index < held_ || index >= held_end_) {  // the rows below are soon asked for, too
      const int64_t count =
          std::clamp(kAhead / std::max<int64_t>(size_, 1), int64_t{1}, pool_.h.windows - i);
      row_ = rows(plane, i, count);
      held_ = index;
      held_end_ = index + count;
    }
    return row_ + (index - held_) * size_;
  }

  // The codes of `count` rows from row i on. Valid until the next call.
  const uint8_t* rows(int64_t plane, int64_t i, int64_t count) {
    const int64_t index = plane * pool_.h.windows + i;
    const uint8_t* codes = codes_.packed ? unpacked(index, count) : codes_.data + index * size_;
    if (checked_ < 0 || codes_.packed) checked_ = std::max(checked_, index);
    for (; checked_ < index; ++checked_) {  // dilated windows: their rows come out of order
      check(codes_.data + checked_ * size_, checked_ % pool_.h.windows, 1);
    }
    if (const int64_t known = checked_ - index; known < count) {
      check(codes + known * size_, i + known, count - known);
      checked_ = index + count;
    }
    return codes;
  }

  // A code that this reader handed out was bad.
  bool bad() const { return bad_; }

 private:
  static constexpr uint16_t kNoTap = UINT16_MAX;
  static constexpr int64_t kAhead = 2048;  // codes that are unpacked and checked at once

  struct Tap {
    uint16_t ki, kj;
  };

  // The taps of a window that lie inside the plane, along one axis.
  struct TapRange {
    uint16_t first, count;

    bool holds(uint16_t tap) const { return static_cast<uint16_t>(tap - first) < count; }
  };

  static TapRange taps_of(const PoolAxis& axis, int64_t window) {
    const int first = axis.first_tap(window), count = axis.end_tap(window) - first;
    return {static_cast<uint16_t>(first), static_cast<uint16_t>(std::max(count, 0))};
  }

  // Groups run along w, or along the channels of one window.
  const uint8_t* unpacked(int64_t index, int64_t count) {
    static constexpr auto kUnpacked = [] {
      std::array<std::array<uint8_t, kCodesPerByte>, 256> table{};
      for (int byte = 0; byte < 256; ++byte) {
        for (int k = 0; k < kCodesPerByte; ++k) table[byte][k] = unpack_code(byte, k);
      }
      return table;
    }();
    const int64_t run = lanes_ == 1 ? pool_.w.windows : lanes_;
    const int64_t runs_per_row = lanes_ == 1 ? 1 : pool_.w.windows;
    scratch_.resize(count * size_ + kCodesPerByte);
    const uint8_t* in = codes_.data + index * runs_per_row * packed_size(run);
    uint8_t* out = scratch_.data();
    for (int64_t r = 0; r < count * runs_per_row; ++r) {
      for (int64_t k = 0; k < run; k += kCodesPerByte) {
        std::memcpy(out + k, kUnpacked[*in++].data(), kCodesPerByte);
      }
      out += run;  // what is written beyond the run is written again
    }
    return scratch_.data();
  }

  void check(const uint8_t* codes, int64_t i, int64_t count) {
    if (good(codes, i, count)) return;
    codes_.bad->store(true, std::memory_order_relaxed);
    bad_ = true;
  }

  bool good(const uint8_t* codes, int64_t i, int64_t count) const {
    const PoolAxis& h = pool_.h;
    if (!below_taps(codes, count * size_)) return false;
    if (whole_begin_ == 0 && whole_end_ == pool_.w.windows && h.whole(i) &&
        h.whole(i + count - 1)) {
      return true;
    }
    bool inside = true;
    for (int64_t r = 0; r < count; ++r) {
      // Windows [first, end) reach nowhere out of the plane.
      const bool whole = rows_[i + r].count == h.kernel;
      const int64_t first = whole ? whole_begin_ : pool_.w.windows;
      const int64_t end = whole ? whole_end_ : pool_.w.windows;
      const uint8_t* const row = codes + r * size_;
      inside &= land_inside(row, i + r, 0, first) && land_inside(row, i + r, end, pool_.w.windows);
    }
    return inside;
  }

  bool below_taps(const uint8_t* codes, int64_t size) const {
    if (codes_.packed) return true;  // two bits, of 2x2 windows
    uint8_t largest = 0;
    for (int64_t k = 0; k < size; ++k) largest = std::max(largest, codes[k]);
    return largest < pool_.taps();
  }

  bool land_inside(const uint8_t* codes, int64_t i, int64_t first, int64_t end) const {
    const TapRange above = rows_[i];
    bool inside = true;
    for (int64_t j = first; j < end; ++j) {
      const TapRange beside = columns_[j];
      for (int64_t c = 0; c < lanes_; ++c) {
        const Tap tap = tap_[codes[j * lanes_ + c]];
        inside &= above.holds(tap.ki) && beside.holds(tap.kj);
      }
    }
    return inside;
  }

  const Pool2d pool_;
  const Codes codes_;
  const int64_t lanes_;
  const int64_t size_;
  int64_t whole_begin_ = 0;
  int64_t whole_end_;
  std::array<Tap, 256> tap_;
  std::vector<TapRange> rows_, columns_;
  std::vector<uint8_t> scratch_;
  const uint8_t* row_ = nullptr;  // the rows [held_, held_end_), of all planes
  int64_t held_ = 0, held_end_ = 0;
  int64_t checked_ = -1;  // the row, of all planes, up to which codes were checked; -1: none
  bool bad_ = false;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
