// An interpreter of bytes as operations on an index beside a std::map, for libFuzzer and for test_index_fuzz.cpp.
//
// The first byte chooses the type of key and how much memory there is; then come operations of one byte and their
// arguments. Nodes are small, so that short inputs make deep trees; runs of keys make them in few bytes.
#pragma once

#define ANABRANCH_INDEX_NODE_WORDS 32  // leaves of 12 keys of one word

#include "index_case.hpp"

namespace anabranch::testing {

struct Bytes {
  const uint8_t* at;
  const uint8_t* end;
  bool empty() const { return at == end; }
  int next() { return empty() ? 0 : *at++; }
};

template <class Key>
class IndexFuzz {
 public:
  IndexFuzz(Bytes bytes, int64_t max_nodes) : bytes_(bytes), index_(max_nodes), twin_(index_) {}

  void run() {
    while (!bytes_.empty()) step();
    twin_.check_all();
  }

 private:
  void step() {
    const int op = bytes_.next();
    switch (op % 16) {
      case 0:
      case 1:
        return insert(key(), op & 16);
      case 2:
        return twin_.erase(key());
      case 3:
        return twin_.look(key());
      case 4:
      case 5:
        return look_at_range(op & 16);
      case 6:
      case 7:
        for (const Key& key : keys()) insert(key, op & 16);
        return;
      case 8:
      case 9:
        for (const Key& key : keys()) twin_.erase(key);
        return;
      case 10:
        twin_.insert_batch(keys(), op & 16);
        return;
      case 11:
        return twin_.erase_batch(keys());
      case 12:
        return twin_.look_batch(keys());
      case 13:
        return erase_from_an_end(op & 16);
      case 14:
        return bulk_load();
      default:
        return op & 16 ? forget_entries(index_, bytes_.next() % 101) : twin_.check_all();
    }
  }

  void insert(const Key& key, bool assign) {
    try {
      twin_.insert(key, static_cast<uint64_t>(random_word()), assign);
    } catch (const std::bad_alloc&) {
      expect(twin_.map.count(key) == 0 && !index_.contains(key), "a refused key is not there");
    }
  }

  void look_at_range(bool inclusive) {
    const Key first = key();
    twin_.look_at_range(first, key(), inclusive);
  }

  void erase_from_an_end(bool last) {
    for (int n = bytes_.next(); n > 0 && !twin_.map.empty(); --n)
      twin_.erase(last ? twin_.map.rbegin()->first : twin_.map.begin()->first);
  }

  /// What is there, and a run of keys, in an index of its own; then that one's entries again in this one.
  void bulk_load() {
    auto map = twin_.map;
    for (const Key& key : keys()) map.emplace(key, 1);
    std::vector<Key> all;
    std::vector<uint64_t> values;
    for (const auto& [key, value] : map) {
      all.push_back(key);
      values.push_back(value);
    }
    BSkipList<Key> loaded(4096);
    Twin<BSkipList<Key>> twin(loaded);
    loaded.bulk_load(all, values);
    twin.map = std::move(map);
    twin.check_all();
    twin.erase_batch(keys());
    twin.insert_batch(keys(), true);
    twin.check_all();
    bool refused = false;
    try {
      index_.bulk_load(all, values);
      expect(twin_.map.empty(), "bulk_load into an index that has keys");
      for (size_t i = 0; i < all.size(); ++i) twin_.map.emplace(all[i], values[i]);
    } catch (const std::bad_alloc&) {
      refused = true;
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(!refused || index_.size() == static_cast<int64_t>(twin_.map.size()), "a refused bulk_load changes nothing");
  }

  int64_t word() {
    constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
    constexpr int64_t edges[] = {least, least + 1, most - 1, most};
    const int first = bytes_.next();
    return first < 240 ? first << 2 | bytes_.next() >> 6 : edges[first % 4];
  }
  static Key key_of(int64_t high, int64_t word) {
    if constexpr (IndexKeyTraits<Key>::words == 1) {
      return word;
    } else {
      return {high, word};
    }
  }
  Key key() {
    const int64_t high = IndexKeyTraits<Key>::words == 2 ? bytes_.next() % 3 : 0;
    return key_of(high, word());
  }
  /// Up to 64 keys, one as far from the next as any other: ascending, descending, or all the same.
  std::vector<Key> keys() {
    const int64_t high = bytes_.next() % 3, first = word();
    const int shape = bytes_.next();
    std::vector<Key> run;
    for (int64_t i = 0; i < shape % 64; ++i) {
      const auto step = static_cast<uint64_t>(i * (shape / 64 - 1));  // wraps at the ends of the range
      run.push_back(key_of(high, static_cast<int64_t>(static_cast<uint64_t>(first) + step)));
    }
    return run;
  }

  Bytes bytes_;
  BSkipList<Key> index_;
  Twin<BSkipList<Key>> twin_;
};

/// Runs one input; prints what is wrong and exits if anything is.
inline int fuzz_index(const uint8_t* data, size_t size) {
  context = "fuzz";
  random_bits.seed(1);
  Bytes bytes{data, data + size};
  const int kind = bytes.next();
  const int64_t max_nodes = kind % 4 == 0 ? 3 + kind / 4 : 4096;
  if (kind & 128) {
    IndexFuzz<std::pair<int64_t, int64_t>>(bytes, max_nodes).run();
  } else {
    IndexFuzz<int64_t>(bytes, max_nodes).run();
  }
  return 0;
}

}  // namespace anabranch::testing
