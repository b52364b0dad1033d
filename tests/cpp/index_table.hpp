// The index's table of functions (functions.hpp), called like a BSkipList, so that both go through the same tests.
#pragma once

#include "anabranch/index/functions.hpp"
#include "index_case.hpp"

namespace anabranch::testing {

/// The table of functions of the instruction set in use, called like a BSkipList.
template <class T>
class TableIndex {
 public:
  using key_type = T;
  using Order = OrderedIndexKey<T, std::less<T>>;
  static constexpr int words = Order::words;
  using Words = IndexKey<words>;

  bool insert(const T& key, uint64_t value) {
    return changed(f_.insert(at(), Order::to_words(key).words, value, false));
  }
  bool insert_or_assign(const T& key, uint64_t value) {
    return changed(f_.insert(at(), Order::to_words(key).words, value, true));
  }
  bool erase(const T& key) {
    uint64_t value;
    return f_.erase(at(), Order::to_words(key).words, &value);
  }
  std::optional<uint64_t> find(const T& key) const {
    uint64_t value;
    return f_.find(at(), Order::to_words(key).words, &value) ? std::optional(value) : std::nullopt;
  }
  std::optional<std::pair<T, uint64_t>> lower_bound(const T& key) const { return bound(f_.lower_bound, key); }
  std::optional<std::pair<T, uint64_t>> last_until(const T& key) const { return bound(f_.last_until, key); }

  struct Entries : std::vector<std::pair<T, uint64_t>> {
    int64_t counted;
    int64_t count() const { return counted; }
  };
  Entries range(const T& first, const T& last, bool inclusive) const {
    Words end = Order::to_words(last);
    if (!inclusive && !index_detail::step_key<words>(end, false)) return {};
    return entries(Order::to_words(first), end);
  }
  Entries entries() const { return entries(index_detail::least_key<words>(), index_detail::greatest_key<words>()); }

  void insert(const std::vector<T>& keys, const std::vector<uint64_t>& values, std::vector<IndexStatus>& status,
              bool assign) {
    f_.insert_batch(at(), keys.size(), words_of(keys), signed_words(values), assign, status.data());
  }
  void erase(const std::vector<T>& keys, std::vector<IndexStatus>& status) {
    f_.erase_batch(at(), keys.size(), words_of(keys), status.data());
  }
  void find(const std::vector<T>& keys, std::vector<uint64_t>& values, std::span<bool> found) const {
    f_.find_batch(at(), keys.size(), words_of(keys), reinterpret_cast<int64_t*>(values.data()), found.data());
  }
  void lower_bound(const std::vector<T>& keys, std::vector<T>& found_keys, std::vector<uint64_t>& values,
                   std::span<bool> found) const {
    f_.lower_bound_batch(at(), keys.size(), words_of(keys), reinterpret_cast<int64_t*>(found_keys.data()),
                         reinterpret_cast<int64_t*>(values.data()), found.data());
  }
  std::vector<int64_t> range_counts(const std::vector<T>& first, const std::vector<T>& last) const {
    std::vector<int64_t> counts(first.size());
    f_.range_count_batch(at(), first.size(), words_of(first), words_of(last), counts.data());
    return counts;
  }
  void bulk_load(const std::vector<T>& keys, const std::vector<uint64_t>& values) {
    int64_t bad;
    const auto outcome = f_.bulk_load(at(), keys.size(), words_of(keys), signed_words(values), &bad);
    expect(outcome == index_detail::BulkLoad::done, "bulk_load");
  }
  int64_t size() const { return at().size(); }
  std::string validate() const { return validate_index(at(), words); }

 private:
  const IndexArena& at() const { return arena_.view(); }
  static bool changed(IndexStatus status) { return status == IndexStatus::changed; }
  /// Both types of key lie in memory as their words do.
  static const int64_t* words_of(const std::vector<T>& keys) { return reinterpret_cast<const int64_t*>(keys.data()); }
  static const int64_t* signed_words(const std::vector<uint64_t>& values) {
    return reinterpret_cast<const int64_t*>(values.data());
  }
  template <class F>
  std::optional<std::pair<T, uint64_t>> bound(F f, const T& key) const {
    Words found;
    uint64_t value;
    if (!f(at(), Order::to_words(key).words, found.words, &value)) return std::nullopt;
    return std::pair{Order::from_words(found), value};
  }
  Entries entries(const Words& first, const Words& last) const {
    Entries found;
    found.counted = f_.range_count(at(), first.words, last.words);
    std::vector<int64_t> keys((found.counted + 1) * words), values(found.counted + 1);
    // A limit that cuts, then one that does not.
    const int64_t cut = found.counted / 2;
    expect(f_.range(at(), first.words, last.words, cut, keys.data(), values.data()) == cut, "range up to a limit");
    const int64_t n = f_.range(at(), first.words, last.words, found.counted + 1, keys.data(), values.data());
    for (int64_t i = 0; i < n; ++i) {
      Words key;
      for (int w = 0; w < words; ++w) key[w] = keys[i * words + w];
      found.emplace_back(Order::from_words(key), static_cast<uint64_t>(values[i]));
    }
    return found;
  }

  OwnedIndexArena arena_{words};
  const IndexFunctions& f_ = index_functions(words);
};

}  // namespace anabranch::testing
