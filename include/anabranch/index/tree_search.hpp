// Reading the B-skiplist: the way from the root to the leaf for a key, safe beside any number of writers.
//
// A search starts at the root, the widest view of the topmost list, and at each level goes right while the key lies
// past the node, then down (toward()). Readers are optimistic: they note the version of a node, read, go on, and ask
// for the version again once they have that of the next node. After `optimistic_attempts` they lock shared, hand over
// hand, as in the paper (Luo et al., arXiv 2507.21492).
//
// Costs of a search among n keys, cold: one inner node in the last cache, the header and the keys of one leaf in memory
// side by side, and one line of values.
#pragma once

#include "anabranch/index/rebalance.hpp"

namespace anabranch::index_detail {

enum class ReadMode { optimistic, shared };

inline constexpr int optimistic_attempts = 16;

/// Nodes on an optimistic way down: the levels, and some that no parent names yet.
inline constexpr int optimistic_steps = 4 * index_max_levels;

template <CpuIsa isa, int key_words>
struct TreeSearch : Rebalance<isa, key_words> {
  using Base = Rebalance<isa, key_words>;
  using Base::arena;
  using Base::exists;
  using Base::node;
  using typename Base::Key;
  using typename Base::Node;
  using typename Base::Place;

  [[gnu::always_inline]] Place enter(Node node) const { return {node, VersionLock::begin_read(node.lock())}; }

  /// Where a search for `key` goes from here: right, down, or nowhere (0) in the leaf that it is for.
  [[gnu::always_inline]] static uint32_t toward(const Node& node, const Key& key) {
    if (node.is_before(key)) [[unlikely]]
      return node.next();
    if (node.level() == 0) return 0;
    return node.child(node.entry_of(key));
  }

  /// Calls visit(leaf, version) in the leaf for `key`; what it saw counts if this returns true. Optimistic visits may
  /// see a leaf while it changes. `step(node, next)` hears of each node on the way.
  template <ReadMode mode, class Visit, class Step>
  [[gnu::always_inline]] bool try_read(const Key& key, Visit&& visit, Step&& step) const {
    if constexpr (mode == ReadMode::shared) {
      Node at = node(index_root);
      VersionLock::lock_shared(at.lock());
      int64_t steps = 0;
      for (uint32_t next; (next = toward(at, key)) != 0;) {
        if (!exists(next) || next == at.id || ++steps > arena.capacity() + index_max_levels) {
          VersionLock::unlock_shared(at.lock());
          return false;
        }
        step(at, next);
        const Node below = node(next);
        VersionLock::lock_shared(below.lock());
        VersionLock::unlock_shared(at.lock());
        at = below;
      }
      visit(at, 0);
      VersionLock::unlock_shared(at.lock());
      return true;
    } else {
      Place at = enter(node(index_root));
      int steps = 0;
      while (const uint32_t next = toward(at.node, key)) {
        if (!exists(next) || ++steps > optimistic_steps) return false;
        const Node below = node(next);
        below.prefetch(at.node.level() - 1);
        step(at.node, next);
        const Place then = enter(below);
        if (!at.unchanged()) return false;
        at = then;
      }
      visit(at.node, at.version);
      return at.unchanged();
    }
  }

  /// Calls visit(leaf, version) until it has seen the leaf for `key` in one piece; the last call counts. false only
  /// where links are damaged.
  template <class Visit, class Step>
  [[gnu::always_inline]] bool read_leaf(const Key& key, Visit&& visit, Step&& step) const {
    for (int attempt = 0; attempt < optimistic_attempts; ++attempt) {
      if (try_read<ReadMode::optimistic>(key, visit, step)) return true;
    }
    return read_leaf_locked(key, visit, step);
  }

  template <class Visit>
  [[gnu::always_inline]] bool read_leaf(const Key& key, Visit&& visit) const {
    return read_leaf(key, visit, [](const Node&, uint32_t) {});
  }

  template <class Visit, class Step>
  [[gnu::noinline]] bool read_leaf_locked(const Key& key, Visit& visit, Step& step) const {
    const IndexWriter guest(arena, IndexWriter::Reads{});  // it holds locks, so a fork must wait for it
    return try_read<ReadMode::shared>(key, visit, step);
  }

  bool find(const Key& key, uint64_t& value) const {
    bool found = false;
    return read_leaf(key,
                     [&](const Node& leaf, uint64_t) {
                       const int i = leaf.lower_bound(key);
                       found = leaf.holds(i, key);
                       if (found) value = leaf.value(i);
                     }) &&
           found;
  }
};

}  // namespace anabranch::index_detail
