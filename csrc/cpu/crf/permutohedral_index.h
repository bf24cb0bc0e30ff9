#pragma once
// Many lists of keys into one numbering, by many threads, the same for any number of them.
//
// Keys are dealt into buckets by their hash, so that every bucket has a table of its own and no two
// tasks meet; a key's number is then counted over the lists, in the order of first appearances.

#include <bit>
#include <cstdint>
#include <vector>

#include "cpu/crf/permutohedral_keys.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// Keys that may appear in other lists, but once in this one.
template <class Key>
struct KeyList {
  LargeVector<Key> keys;
  LargeVector<uint16_t> marks;      // of each key, or empty
  LargeVector<int32_t> by_bucket;   // its keys' indices, bucket by bucket, ascending in each
  std::vector<int32_t> bucket_end;  // within by_bucket
  int64_t first = 0;                // the keys of all lists before
  int64_t new_keys = 0;             // those that did not appear before
};

template <class Key>
class KeyIndex {
 public:
  // Numbers the keys of all lists: `numbers` has one for each key of each list, list after list.
  // A key with fewer marks than that, those of all its appearances or'ed, is numbered
  // KeyTable::kNone.
  void build(std::vector<KeyList<Key>>& lists, int32_t* numbers, const TaskRunner& tasks,
             int fewest_marks = 0) {
    const auto wanted = [&](uint16_t marks) { return std::popcount(marks) >= fewest_marks; };
    int64_t total = 0;
    for (KeyList<Key>& list : lists) list.first = total, total += list.keys.size();
    bucket_bits_ = 0;
    while (bucket_bits_ < 6 && (total >> bucket_bits_) > 4096) ++bucket_bits_;
    tables_.resize(size_t{1} << bucket_bits_);
    const int64_t count = static_cast<int64_t>(lists.size());
    tasks.run(count, [&](int64_t l) { deal(lists[l]); });
    LargeVector<uint16_t> marks(lists.empty() || lists[0].marks.empty() ? 0 : total);
    tasks.run(static_cast<int64_t>(tables_.size()),
              [&](int64_t b) { find_first_appearances(lists, b, numbers, marks); });
    // Until here a key's number is the position of its first appearance.
    tasks.run(count, [&](int64_t l) {
      KeyList<Key>& list = lists[l];
      list.new_keys = 0;
      for (int64_t i = list.first, end = end_of(list); i < end; ++i) {
        list.new_keys += numbers[i] == i && (marks.empty() || wanted(marks[i]));
      }
    });
    std::vector<int64_t> before(lists.size() + 1);
    for (int64_t l = 0; l < count; ++l) before[l + 1] = before[l] + lists[l].new_keys;
    keys_.resize(before[count]);
    LargeVector<int32_t> number_of(total);  // of first appearances
    tasks.run(count, [&](int64_t l) {
      int32_t next = static_cast<int32_t>(before[l]);
      for (int64_t i = lists[l].first, end = end_of(lists[l]); i < end; ++i) {
        if (numbers[i] != i) continue;
        const bool kept = marks.empty() || wanted(marks[i]);
        number_of[i] = kept ? next : KeyTable::kNone;
        if (kept) keys_[next++] = lists[l].keys[i - lists[l].first];
      }
    });
    tasks.run(count + static_cast<int64_t>(tables_.size()), [&](int64_t t) {
      if (t < count) {
        for (int64_t i = lists[t].first, end = end_of(lists[t]); i < end; ++i) {
          numbers[i] = number_of[numbers[i]];
        }
      } else {
        for (KeyTable::Entry& entry : tables_[t - count].entries()) {
          if (entry.number == KeyTable::kNone) continue;
          const int32_t number = number_of[entry.number];
          entry.number = number == KeyTable::kNone ? kUnwanted : number;
        }
      }
    });
  }

  const LargeVector<Key>& keys() const { return keys_; }  // by number

  // The number of a key, or KeyTable::kNone.
  int32_t find(Key key, uint64_t hashed) const {
    const int32_t number =
        table(hashed).number(hashed, [&](int32_t n) { return n != kUnwanted && keys_[n] == key; });
    return number;
  }
  int32_t find(Key key) const { return find(key, hash(key)); }

  void prefetch(uint64_t hashed) const { __builtin_prefetch(&table(hashed).first_entry(hashed)); }

 private:
  static constexpr int32_t kUnwanted = -2;

  static int64_t end_of(const KeyList<Key>& list) {
    return list.first + static_cast<int64_t>(list.keys.size());
  }

  size_t bucket(uint64_t hashed) const { return hashed >> 8 & (tables_.size() - 1); }
  const KeyTable& table(uint64_t hashed) const { return tables_[bucket(hashed)]; }

  void deal(KeyList<Key>& list) const {
    const LargeVector<Key>& keys = list.keys;
    list.bucket_end.assign(tables_.size() + 1, 0);
    for (const Key key : keys) ++list.bucket_end[bucket(hash(key)) + 1];
    for (size_t b = 0; b < tables_.size(); ++b) list.bucket_end[b + 1] += list.bucket_end[b];
    list.by_bucket.resize(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      list.by_bucket[list.bucket_end[bucket(hash(keys[i]))]++] = static_cast<int32_t>(i);
    }
    list.bucket_end.pop_back();  // what was a bucket's start is its end now
  }

  void find_first_appearances(const std::vector<KeyList<Key>>& lists, int64_t b, int32_t* numbers,
                              LargeVector<uint16_t>& marks) {
    const auto start = [b](const KeyList<Key>& list) { return b ? list.bucket_end[b - 1] : 0; };
    int64_t total = 0;
    for (const KeyList<Key>& list : lists) total += list.bucket_end[b] - start(list);
    KeyTable& table = tables_[b];
    table.reset(total);
    LargeVector<Key> keys;  // by what the table's entries hold meanwhile
    LargeVector<int32_t> positions;
    for (const KeyList<Key>& list : lists) {
      for (int32_t k = start(list); k < list.bucket_end[b]; ++k) {
        const int32_t i = list.by_bucket[k];
        const Key key = list.keys[i];
        const uint64_t hashed = hash(key);
        KeyTable::Entry& entry = table.find(hashed, [&](int32_t n) { return keys[n] == key; });
        const int32_t position = static_cast<int32_t>(list.first + i);
        if (entry.number == KeyTable::kNone) {
          entry = {static_cast<uint32_t>(hashed), static_cast<int32_t>(keys.size())};
          keys.push_back(key);
          positions.push_back(position);
        }
        const int32_t first = positions[entry.number];
        numbers[position] = first;
        if (!marks.empty()) marks[first] |= list.marks[i];
      }
    }
    for (KeyTable::Entry& entry : table.entries()) {
      if (entry.number != KeyTable::kNone) entry.number = positions[entry.number];
    }
  }

  int bucket_bits_ = 0;
  std::vector<KeyTable> tables_;
  LargeVector<Key> keys_;
};

}  // namespace fastseg::cpu
