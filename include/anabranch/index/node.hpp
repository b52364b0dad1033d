// One node of an index: its fields by name, search, and moving entries within a node or to a neighbour.
//
// Nothing here locks. What only reads may run while a writer is inside: counts are bounded, so no read leaves the node.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "anabranch/index/arena.hpp"
#include "anabranch/index/search.hpp"

namespace anabranch::index_detail {

template <CpuIsa isa, int key_words>
struct Node {
  using Layout = IndexNode<key_words>;
  using Key = IndexKey<key_words>;

  int64_t* words = nullptr;
  uint32_t id = 0;

  Node() = default;
  [[gnu::always_inline]] Node(const IndexArena& arena, uint32_t id) : words(arena.node(id)), id(id) {}

  [[gnu::always_inline]] uint64_t* lock() const { return reinterpret_cast<uint64_t*>(words); }

  [[gnu::always_inline]] int level() const { return read(shape() + 1); }
  [[gnu::always_inline]] int count() const { return bounded_count(capacity()); }
  [[gnu::always_inline]] int capacity() const { return Layout::capacity(level() == 0); }
  /// The same of a node that is a leaf, or was one: whatever is there meanwhile, no read leaves the node.
  [[gnu::always_inline]] int leaf_count() const { return bounded_count(Layout::leaf_capacity); }
  [[gnu::always_inline]] uint32_t next() const { return read(next_word()); }
  [[gnu::always_inline]] Key high() const {
    Key key;
    for (int w = 0; w < key_words; ++w) key[w] = read(words + Layout::high + w);
    return key;
  }

  [[gnu::always_inline]] Key key(bool leaf, int i) const {
    Key key;
    for (int w = 0; w < key_words; ++w) key[w] = read(words + Layout::keys(leaf, w) + i);
    return key;
  }
  [[gnu::always_inline]] uint64_t value(int i) const {
    return static_cast<uint64_t>(read(words + Layout::payload(true) + i));
  }
  [[gnu::always_inline]] uint32_t child(int i) const { return read(children() + i); }

  /// Whether the key lies to the right of this node.
  [[gnu::always_inline]] bool is_before(const Key& key) const { return next() != 0 && !(key < high()); }

  /// A leaf's keys less than `key`.
  [[gnu::always_inline]] int lower_bound(const Key& key) const {
    return NodeSearch<isa, key_words, false>::count(words + Layout::keys(true, 0), stride(true), leaf_count(), key);
  }
  /// The entry of an inner node that leads to `key`.
  [[gnu::always_inline]] int entry_of(const Key& key) const {
    const int before = NodeSearch<isa, key_words, true>::count(words + Layout::keys(false, 0), stride(false),
                                                               bounded_count(Layout::inner_capacity), key);
    return std::max(before - 1, 0);
  }

  /// The part of a node of one-word keys that a search for `key` has to look at, if the pivots are right.
  [[gnu::always_inline]] int part_of(const Key& key) const {
    int part = 0;
    for (int j = 0; j < Layout::num_pivots; ++j) part += read(words + Layout::pivots + j) <= key[0];
    return part;
  }
  /// lower_bound(key) of a leaf, from its part alone where that settles it.
  [[gnu::always_inline]] int lower_bound(const Key& key, int part) const {
    const int at = count_in_part<true, false>(key, part, leaf_count());
    return at >= 0 ? at : lower_bound(key);
  }
  /// entry_of(key) of an inner node, from its part alone where that settles it.
  [[gnu::always_inline]] int entry_of(const Key& key, int part) const {
    const int before = count_in_part<false, true>(key, part, bounded_count(Layout::inner_capacity));
    return before > 0 ? before - 1 : entry_of(key);
  }

  /// Whether key i of a leaf is `key`, for i = lower_bound(key).
  [[gnu::always_inline]] bool holds(int i, const Key& key) const {
    return i < leaf_count() && this->key(true, i) == key;
  }

  /// Asks for the cache lines that a search reads, header and keys, of a node on that level: its own word is not here
  /// yet.
  [[gnu::always_inline]] void prefetch(int level) const {
    if (level == 0) {
      prefetch_lines<true>();
    } else {
      prefetch_lines<false>();
    }
  }

  /// Asks for the lines of one part: keys, and in an inner node children.
  [[gnu::always_inline]] void prefetch_part(bool leaf, int part) const {
    const int keys = Layout::part(leaf), first = part * keys;
    const int64_t* column = words + Layout::keys(leaf, 0) + first;
    for (int i = 0; i < keys && first + i < Layout::capacity(leaf); i += 8) __builtin_prefetch(column + i);
    if (!leaf) {
      __builtin_prefetch(children() + first);
      __builtin_prefetch(children() + std::min(first + keys, Layout::inner_capacity) - 1);
    }
  }

  /// Asks for the whole node, to change it: half of its values will move.
  [[gnu::always_inline]] void prefetch_to_write() const {
#pragma GCC unroll 16
    for (int line = 0; line < Layout::words / 8; ++line) __builtin_prefetch(words + 8 * line, 1);
  }

  // Changes, by whoever holds the node.

  /// Unlocks a node that has been changed.
  [[gnu::always_inline]] void release() const {
    set_pivots();
    VersionLock::unlock(lock());
  }
  /// Of a node whose keys are as they will be; release does it for nodes that are locked.
  [[gnu::always_inline]] void set_pivots() const {
    if constexpr (key_words == 1) {
      const bool leaf = level() == 0;
      const int count = this->count(), part = Layout::part(leaf);
      for (int j = 0; j < Layout::num_pivots; ++j) {
        const int at = (j + 1) * part;
        write(words + Layout::pivots + j, at < count ? key(leaf, at)[0] : std::numeric_limits<int64_t>::max());
      }
    }
  }
  [[gnu::always_inline]] void set_count(int count) const { write(shape(), count); }
  [[gnu::always_inline]] void set_level(int level) const { write(shape() + 1, level); }
  [[gnu::always_inline]] void set_next(uint32_t id) const { write(next_word(), id); }
  [[gnu::always_inline]] void set_high(const Key& key) const {
    for (int w = 0; w < key_words; ++w) write(words + Layout::high + w, key[w]);
  }
  [[gnu::always_inline]] void set_key(bool leaf, int i, const Key& key) const {
    for (int w = 0; w < key_words; ++w) write(words + Layout::keys(leaf, w) + i, key[w]);
  }
  [[gnu::always_inline]] void set_value(int i, uint64_t value) const {
    write(words + Layout::payload(true) + i, static_cast<int64_t>(value));
  }
  [[gnu::always_inline]] void set_child(int i, uint32_t id) const { write(children() + i, id); }

  /// Entries [from, count) go to [from + by, count + by); the count follows.
  void shift(int from, int by) const {
    const bool leaf = level() == 0;
    copy_entries(*this, from, count() - from, *this, from + by, leaf);
    set_count(count() + by);
  }

  /// `n` entries of `source` from `from` on become this node's entries from `to` on; counts are the caller's.
  [[gnu::always_inline]] void take(const Node& source, int from, int n, int to) const {
    copy_entries(source, from, n, *this, to, source.level() == 0);
  }

  void insert(int i, const Key& key, uint64_t value) const {
    shift(i, 1);
    set_key(true, i, key);
    set_value(i, value);
  }
  void insert_child(int i, const Key& key, uint32_t id) const {
    shift(i, 1);
    set_key(false, i, key);
    set_child(i, id);
  }
  void erase(int i) const { shift(i + 1, -1); }

 private:
  [[gnu::always_inline]] int bounded_count(int capacity) const {
    return static_cast<int>(std::min(static_cast<unsigned>(read(shape())), static_cast<unsigned>(capacity)));
  }
  [[gnu::always_inline]] int32_t* shape() const { return reinterpret_cast<int32_t*>(words + Layout::shape); }
  [[gnu::always_inline]] uint32_t* next_word() const { return reinterpret_cast<uint32_t*>(words + Layout::next); }
  [[gnu::always_inline]] uint32_t* children() const {
    return reinterpret_cast<uint32_t*>(words + Layout::payload(false));
  }
  template <bool leaf>
  [[gnu::always_inline]] void prefetch_lines() const {
    constexpr int lines = (Layout::columns + Layout::capacity(leaf) * key_words + 7) / 8;
#pragma GCC unroll 16
    for (int line = 0; line < lines; ++line) __builtin_prefetch(words + 8 * line);
  }

  /// How many of the node's keys come before `key` (are not above it, where `or_equal`), if the keys of the part and
  /// the one behind it tell; else -1.
  template <bool leaf, bool or_equal>
  [[gnu::always_inline]] int count_in_part(const Key& key, int part, int count) const {
    const int first = part * Layout::part(leaf), inside = std::clamp(count - first, 0, Layout::part(leaf));
    const int64_t* column = words + Layout::keys(leaf, 0) + first;
    const int before = NodeSearch<isa, 1, or_equal>::count(column, 0, inside, key);
    const bool begins_here = part == 0 || before > 0 || (inside > 0 && !(key < this->key(leaf, first)));
    const bool ends_here = before < inside || first + inside == count || key < this->key(leaf, first + inside);
    return begins_here && ends_here ? first + before : -1;
  }

  [[gnu::always_inline]] static constexpr int stride(bool leaf) { return Layout::capacity(leaf); }

  [[gnu::always_inline]] static void copy_entries(const Node& source, int from, int n, const Node& target, int to,
                                                  bool leaf) {
    if (n <= 0) return;
    for (int w = 0; w < key_words; ++w) {
      const int column = Layout::keys(leaf, w);
      move(target.words + column + to, source.words + column + from, n);
    }
    if (leaf) {
      move(target.words + Layout::payload(true) + to, source.words + Layout::payload(true) + from, n);
    } else {
      move(target.children() + to, source.children() + from, n);
    }
  }
};

}  // namespace anabranch::index_detail
