// BSkipList: an ordered map from 64-bit keys to 64-bit values that any number of threads read and write at once.
//
//   #include <anabranch/index/bskiplist.hpp>
//   anabranch::BSkipList<int64_t> index;
//   index.insert(7, 49);
//   if (auto value = index.find(7)) use(*value);
//   for (auto [key, value] : index.range(0, 100)) ...
//
// Header-only, no torch. Compile with the flags of the machine (-march=native): searches within nodes use AVX-512 or
// AVX2 where the compiler may. Memory is one reservation of addresses whose pages come as they are used; tree.hpp says
// how the threads keep out of each other's way, layout.hpp what memory looks like.
#pragma once

#include <iterator>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "anabranch/index/batch.hpp"
#include "anabranch/index/bulk_load.hpp"
#include "anabranch/index/validate.hpp"

namespace anabranch {

/// Keys: int64_t, uint64_t, double (ascending, -0.0 is 0.0, no NaN), std::pair<int64_t, int64_t>, or any type with
/// IndexKeyTraits. Compare: std::less or std::greater. Values: 64 bits. Every member function may be called by any
/// thread at any time, but for construction and destruction. Single operations are linearizable; what a scan promises
/// is in scan.hpp. All throw std::bad_alloc where `max_nodes` is used up, with the index as it was before the
/// operation; a batch says of each key whether it was applied instead.
template <class Key, class Compare = std::less<Key>, CpuIsa isa = compiled_cpu_isa>
class BSkipList {
  using Order = OrderedIndexKey<Key, Compare>;
  static constexpr int key_words = Order::words;
  using Words = IndexKey<key_words>;
  using Tree = index_detail::Tree<isa, key_words>;
  using Scan = index_detail::Scan<isa, key_words>;
  using Batch = index_detail::Batch<isa, key_words>;
  using Outcome = index_detail::Outcome;

 public:
  using key_type = Key;
  using mapped_type = uint64_t;
  using value_type = std::pair<Key, uint64_t>;

  /// `max_nodes` of 1 KiB bound its memory; by default only the machine's does.
  explicit BSkipList(int64_t max_nodes = OwnedIndexArena::default_max_nodes) : arena_(key_words, max_nodes) {}

  /// Whether the key was new; if not, its value stays.
  bool insert(const Key& key, uint64_t value) { return changed(tree().insert(Order::to_words(key), value, false)); }

  /// Whether the key was new; if not, it has the value now.
  bool insert_or_assign(const Key& key, uint64_t value) {
    return changed(tree().insert(Order::to_words(key), value, true));
  }

  std::optional<uint64_t> find(const Key& key) const {
    uint64_t value;
    return tree().find(Order::to_words(key), value) ? std::optional(value) : std::nullopt;
  }
  bool contains(const Key& key) const { return find(key).has_value(); }

  /// Whether the key was there. Nodes that become nearly empty are merged and used again.
  bool erase(const Key& key) { return extract(key).has_value(); }

  /// Erases the key and returns the value it had then.
  std::optional<uint64_t> extract(const Key& key) {
    uint64_t value;
    return tree().erase(Order::to_words(key), value) ? std::optional(value) : std::nullopt;
  }

  /// The first entry whose key is not less than `key`.
  std::optional<value_type> lower_bound(const Key& key) const {
    Words found;
    uint64_t value;
    if (!Scan::lower_bound(tree(), Order::to_words(key), found, value)) return std::nullopt;
    return value_type{Order::from_words(found), value};
  }

  /// Keys now; exact when nobody writes. Costs 16 cache lines.
  int64_t size() const { return tree().arena.size(); }
  bool empty() const { return size() == 0; }

  /// Bytes of the nodes that were ever in use; what erase gives back is used again and stays in this number.
  int64_t memory_bytes() const {
    return __atomic_load_n(tree().arena.control + IndexControl::used, __ATOMIC_RELAXED) * index_node_words * 8;
  }

  class Range;
  /// Entries with first <= key < last, or key <= last where `inclusive`.
  Range range(const Key& first, const Key& last, bool inclusive = false) const {
    Words end = Order::to_words(last);
    const bool any = inclusive || index_detail::step_key<key_words>(end, false);
    return any ? Range(tree(), Order::to_words(first), end) : Range(tree());
  }
  /// All entries in order.
  Range entries() const {
    return Range(tree(), index_detail::least_key<key_words>(), index_detail::greatest_key<key_words>());
  }
  /// Calls visit(key, value) for up to `limit` entries from `first` on; their number.
  template <class Visit>
  int64_t visit(const Key& first, int64_t limit, Visit&& visit) const {
    constexpr int64_t chunk = IndexNode<key_words>::leaf_capacity;
    int64_t keys[chunk * key_words], values[chunk], seen = 0;
    Words from = Order::to_words(first);
    while (seen < limit) {
      const int64_t wanted = std::min(chunk, limit - seen);
      const int64_t got = Scan::range(tree(), from, index_detail::greatest_key<key_words>(), wanted, keys, values);
      for (int64_t i = 0; i < got; ++i) visit(Order::from_words(Words::at(keys, i)), static_cast<uint64_t>(values[i]));
      seen += got;
      if (got < wanted) break;
      from = Words::at(keys, got - 1);
      if (!index_detail::step_key<key_words>(from, true)) break;
    }
    return seen;
  }
  auto begin() const { return entries().begin(); }
  std::default_sentinel_t end() const { return {}; }

  /// Fills an empty index from ascending keys. Throws std::invalid_argument where it is not empty or they do not
  /// ascend.
  void bulk_load(std::span<const Key> keys, std::span<const uint64_t> values) {
    check(keys.size() == values.size(), "bulk_load: values has ", values.size(), " entries, must have ", keys.size(),
          " like keys; give each key a value");
    int64_t bad = 0;
    const auto outcome = index_detail::BulkLoader<isa, key_words>::load(tree(), static_cast<int64_t>(keys.size()),
                                                                        words_of(keys).data(), as_words(values), bad);
    check(outcome != index_detail::BulkLoad::not_empty,
          "bulk_load: the index has keys, must be empty; load into a new one");
    check(outcome != index_detail::BulkLoad::not_ascending, "bulk_load: keys[", bad,
          "] is not greater than the key before it, must be; sort the keys and drop repetitions");
    if (outcome == index_detail::BulkLoad::full) throw std::bad_alloc();
  }

  // Batches: as if one by one, but for the order of different keys. Spans of one length. They use parallel_backend().

  void find(std::span<const Key> keys, std::span<uint64_t> values, std::span<bool> found) const {
    check_lengths("find", keys.size(), values.size(), found.size());
    Batch::find(tree(), keys.size(), words_of(keys).data(), reinterpret_cast<int64_t*>(values.data()), found.data());
  }
  void insert(std::span<const Key> keys, std::span<const uint64_t> values, std::span<IndexStatus> status,
              bool assign = false) {
    check_lengths("insert", keys.size(), values.size(), status.size());
    Batch::insert(tree(), keys.size(), words_of(keys).data(), as_words(values), assign, status.data());
  }
  void erase(std::span<const Key> keys, std::span<IndexStatus> status) {
    check_lengths("erase", keys.size(), keys.size(), status.size());
    Batch::erase(tree(), keys.size(), words_of(keys).data(), status.data());
  }
  /// Where found[i] is false, values[i] is 0 and found_keys[i] is left as it was.
  void lower_bound(std::span<const Key> keys, std::span<Key> found_keys, std::span<uint64_t> values,
                   std::span<bool> found) const {
    check_lengths("lower_bound", keys.size(), values.size(), found.size());
    check_lengths("lower_bound", keys.size(), found_keys.size(), found.size());
    std::vector<int64_t> words(keys.size() * key_words);
    Batch::lower_bound(tree(), keys.size(), words_of(keys).data(), words.data(),
                       reinterpret_cast<int64_t*>(values.data()), found.data());
    for (size_t i = 0; i < keys.size(); ++i) {
      if (found[i]) found_keys[i] = Order::from_words(Words::at(words.data(), i));
    }
  }

  /// What is wrong with the structure, or nothing: for tests, and for memory that came from elsewhere. Writers wait.
  std::string validate() const { return index_detail::Validator<isa, key_words>::check(tree()); }

  const IndexArena& arena() const { return arena_.view(); }

 private:
  Tree tree() const { return Tree{arena_.view()}; }

  static bool changed(Outcome outcome) {
    if (outcome == Outcome::full) throw std::bad_alloc();
    return outcome == Outcome::yes;
  }

  static void check_lengths(const char* op, size_t keys, size_t values, size_t results) {
    check(values == keys && results == keys, op, ": spans have ", keys, ", ", values, " and ", results,
          " entries, must have as many as keys; make them of one length");
  }

  static const int64_t* as_words(std::span<const uint64_t> values) {
    return reinterpret_cast<const int64_t*>(values.data());
  }

  static std::vector<int64_t> words_of(std::span<const Key> keys) {
    std::vector<int64_t> words(keys.size() * key_words);
    for (size_t i = 0; i < keys.size(); ++i) {
      const Words key = Order::to_words(keys[i]);
      for (int w = 0; w < key_words; ++w) words[i * key_words + w] = key[w];
    }
    return words;
  }

  OwnedIndexArena arena_;
};

/// Entries in order while others write: fetched some at a time, each leaf's in one piece.
template <class Key, class Compare, CpuIsa isa>
class BSkipList<Key, Compare, isa>::Range {
 public:
  class Iterator {
   public:
    using value_type = std::pair<Key, uint64_t>;
    using difference_type = std::ptrdiff_t;

    explicit Iterator(const Range& range) : tree_(range.tree_), first_(range.first_), last_(range.last_) {
      if (range.any_) fetch();
    }
    value_type operator*() const {
      return {Order::from_words(Words::at(keys_, at_)), static_cast<uint64_t>(values_[at_])};
    }
    Iterator& operator++() {
      if (++at_ == count_ && more_) fetch();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return at_ == count_; }

   private:
    static constexpr int chunk = IndexNode<key_words>::leaf_capacity;

    void fetch() {
      at_ = 0;
      count_ = Scan::range(tree_, first_, last_, chunk, keys_, values_);
      more_ = count_ == chunk;
      if (!more_) return;
      first_ = Words::at(keys_, count_ - 1);
      more_ = index_detail::step_key<key_words>(first_, true);
    }

    Tree tree_;
    Words first_, last_;
    int64_t at_ = 0, count_ = 0;
    bool more_ = false;
    int64_t keys_[chunk * key_words], values_[chunk];
  };

  Iterator begin() const { return Iterator(*this); }
  std::default_sentinel_t end() const { return {}; }

  /// Their number, without copying them.
  int64_t count() const { return any_ ? Scan::range_count(tree_, first_, last_) : 0; }

 private:
  friend class BSkipList;
  explicit Range(const Tree& tree) : tree_(tree), first_{}, last_{}, any_(false) {}
  Range(const Tree& tree, const Words& first, const Words& last)
      : tree_(tree), first_(first), last_(last), any_(true) {}

  Tree tree_;
  Words first_, last_;
  bool any_;
};

}  // namespace anabranch
