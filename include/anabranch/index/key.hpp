// Keys as the index keeps them: one or two signed words whose order is the order of the keys.
//
// The order is chosen at compile time by the key and its comparison; the index itself knows words alone, so there are
// two of it and not one for each type.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

#include "anabranch/core/check.hpp"

namespace anabranch {

/// Everything is always inlined: these functions belong to no instruction set, and the linker would keep any copy.
template <int key_words>
struct IndexKey {
  int64_t words[key_words];

  /// Key i of a batch, whose words are keys[i * key_words ...].
  [[gnu::always_inline]] static constexpr IndexKey at(const int64_t* keys, int64_t i) {
    IndexKey key;
    for (int w = 0; w < key_words; ++w) key.words[w] = keys[i * key_words + w];
    return key;
  }
  [[gnu::always_inline]] constexpr int64_t& operator[](int w) { return words[w]; }
  [[gnu::always_inline]] constexpr int64_t operator[](int w) const { return words[w]; }
  [[gnu::always_inline]] constexpr void fill(int64_t word) {
    for (int w = 0; w < key_words; ++w) words[w] = word;
  }
  [[gnu::always_inline]] friend constexpr bool operator==(const IndexKey& a, const IndexKey& b) {
    for (int w = 0; w < key_words; ++w) {
      if (a.words[w] != b.words[w]) return false;
    }
    return true;
  }
  [[gnu::always_inline]] friend constexpr bool operator<(const IndexKey& a, const IndexKey& b) {
    if constexpr (key_words == 2) {
      if (a.words[0] == b.words[0]) return a.words[1] < b.words[1];
    }
    return a.words[0] < b.words[0];
  }
};

/// How a key becomes words and back. Specialise it for a type of your own: `words`, `to_words` and `from_words`, with
/// `to_words(a) < to_words(b)` exactly where a is less than b.
template <class Key>
struct IndexKeyTraits;

template <>
struct IndexKeyTraits<int64_t> {
  static constexpr int words = 1;
  static IndexKey<1> to_words(int64_t key) { return {key}; }
  static int64_t from_words(IndexKey<1> key) { return key[0]; }
};

template <>
struct IndexKeyTraits<uint64_t> {
  static constexpr int words = 1;
  static constexpr uint64_t sign = uint64_t{1} << 63;
  static IndexKey<1> to_words(uint64_t key) { return {static_cast<int64_t>(key ^ sign)}; }
  static uint64_t from_words(IndexKey<1> key) { return static_cast<uint64_t>(key[0]) ^ sign; }
};

/// Ascending from -infinity to infinity. -0.0 is 0.0, as a map of numbers has it; NaN has no place and is refused.
template <>
struct IndexKeyTraits<double> {
  static constexpr int words = 1;
  static IndexKey<1> to_words(double key) {
    check(key == key, "BSkipList: key is NaN, must be a number; drop it or give it a number of its own");
    const auto bits = std::bit_cast<int64_t>(key + 0.0);
    return {flipped(bits)};
  }
  static double from_words(IndexKey<1> key) { return std::bit_cast<double>(flipped(key[0])); }
  /// Negative numbers ascend as their bits descend. Its own inverse.
  static constexpr int64_t flipped(int64_t bits) { return bits ^ ((bits >> 63) & std::numeric_limits<int64_t>::max()); }
};

/// By the first, then by the second: (node, time), (expiry, id).
template <>
struct IndexKeyTraits<std::pair<int64_t, int64_t>> {
  static constexpr int words = 2;
  static IndexKey<2> to_words(std::pair<int64_t, int64_t> key) { return {key.first, key.second}; }
  static std::pair<int64_t, int64_t> from_words(IndexKey<2> key) { return {key[0], key[1]}; }
};

/// A key and the comparison that orders it.
template <class Key, class Compare>
struct OrderedIndexKey {
  static constexpr bool descending =
      std::is_same_v<Compare, std::greater<Key>> || std::is_same_v<Compare, std::greater<>>;
  static_assert(
      descending || std::is_same_v<Compare, std::less<Key>> || std::is_same_v<Compare, std::less<>>,
      "BSkipList: Compare must be std::less or std::greater; another order is IndexKeyTraits of a type of its own");
  static constexpr int words = IndexKeyTraits<Key>::words;

  static IndexKey<words> to_words(const Key& key) { return turned(IndexKeyTraits<Key>::to_words(key)); }
  static Key from_words(IndexKey<words> key) { return IndexKeyTraits<Key>::from_words(turned(key)); }

 private:
  static IndexKey<words> turned(IndexKey<words> key) {
    if constexpr (descending) {
      for (int64_t& word : key.words) word = ~word;
    }
    return key;
  }
};

}  // namespace anabranch
