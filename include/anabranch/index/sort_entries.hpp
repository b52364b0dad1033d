// Sorts a batch by key, equal keys in the order they came: a radix sort over the bytes in which the keys differ at all.
//
// Each such byte reads and writes every entry once: 2 * 16 bytes a pass for keys of one word, at most 8 passes, and 4
// or 5 for ids and timestamps. A comparison sort of a million random keys takes five times as long, and it is the
// largest part of inserting them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/index/key.hpp"

namespace anabranch::index_detail {

template <CpuIsa isa, int key_words>
struct SortedEntries {
  struct Entry {
    IndexKey<key_words> key;
    int64_t index;
  };
  std::vector<Entry> entries;

  /// Key i is keys[i * key_words ...].
  SortedEntries(int64_t n, const int64_t* keys) : entries(n) {
    bool ascending = true;
    for (int64_t i = 0; i < n; ++i) {
      entries[i].key = IndexKey<key_words>::at(keys, i);
      entries[i].index = i;
      ascending = ascending && (i == 0 || !(entries[i].key < entries[i - 1].key));
    }
    if (ascending) return;
    if (n < least_for_radix) {
      std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });
    } else {
      radix_sort();
    }
  }

 private:
  static constexpr int64_t least_for_radix = 192;
  static constexpr int digits = 8 * key_words;

  /// The least digit first; the sign bit turned, so that negative words come first.
  [[gnu::always_inline]] static int digit_of(const Entry& entry, int digit) {
    const auto word = static_cast<uint64_t>(entry.key[key_words - 1 - digit / 8]) ^ (uint64_t{1} << 63);
    return static_cast<int>(word >> (8 * (digit % 8)) & 255);
  }

  void radix_sort() {
    std::vector<int64_t> counts(digits * 256);
    for (const Entry& entry : entries) {
      for (int digit = 0; digit < digits; ++digit) ++counts[digit * 256 + digit_of(entry, digit)];
    }
    std::vector<Entry> other(entries.size());
    for (int digit = 0; digit < digits; ++digit) {
      int64_t* place = &counts[digit * 256];
      if (place[digit_of(entries[0], digit)] == static_cast<int64_t>(entries.size())) continue;
      for (int64_t value = 0, before = 0; value < 256; ++value) before += std::exchange(place[value], before);
      for (const Entry& entry : entries) other[place[digit_of(entry, digit)]++] = entry;
      entries.swap(other);
    }
  }
};

}  // namespace anabranch::index_detail
