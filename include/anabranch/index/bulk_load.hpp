// An index of keys that are sorted already: leaves are written side by side, then the levels above them.
//
// Reads 8 (key_words + 1) bytes a key and writes a ninth more; the limit is the memory's bandwidth.
#pragma once

#include <vector>

#include "anabranch/core/parallel.hpp"
#include "anabranch/index/scan.hpp"

namespace anabranch::index_detail {

enum class BulkLoad { done, not_empty, not_ascending, full };

template <CpuIsa isa, int key_words>
struct BulkLoader {
  using Tree = index_detail::Tree<isa, key_words>;
  using Node = typename Tree::Node;
  using Layout = IndexNode<key_words>;
  using Key = IndexKey<key_words>;

  /// Key i is keys[i * key_words ...]. Nothing is changed unless all can be: `bad` is then the first key that is not
  /// greater than the one before it.
  static BulkLoad load(const Tree& tree, int64_t n, const int64_t* keys, const int64_t* values, int64_t& bad) {
    bad = first_not_ascending(n, keys);
    if (bad < n) return BulkLoad::not_ascending;
    IndexWriter writer(tree.arena);
    const Node root = tree.node(index_root);
    VersionLock::lock(root.lock());
    const BulkLoad outcome = root.level() != 0 || root.count() != 0 ? BulkLoad::not_empty : fill(tree, n, keys, values);
    if (outcome == BulkLoad::done) writer.add_to_size(n);
    root.release();
    return outcome;
  }

 private:
  /// Room is left for a tenth more, so that the first inserts do not split everything.
  static constexpr int per_leaf = Layout::leaf_capacity * 9 / 10, per_inner = Layout::inner_capacity * 9 / 10;
  static constexpr int64_t grain = 1 << 14;  // keys worth a thread

  static int64_t first_not_ascending(int64_t n, const int64_t* keys) {
    std::atomic<int64_t> bad{n};
    parallel_for(n - 1, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (Key::at(keys, i) < Key::at(keys, i + 1)) [[likely]]
          continue;
        for (int64_t seen = bad.load(); i + 1 < seen && !bad.compare_exchange_weak(seen, i + 1);) {
        }
        return;
      }
    });
    return bad.load();
  }

  /// `count` entries in nodes of up to `per_node`, as even as they can be.
  struct Level {
    int64_t nodes = 0, entries = 0;
    uint32_t first = 0;
    int64_t begin(int64_t node) const { return entries * node / nodes; }
  };

  static BulkLoad fill(const Tree& tree, int64_t n, const int64_t* keys, const int64_t* values) {
    const Node root = tree.node(index_root);
    if (n == 0) return BulkLoad::done;  // keys and values may be null
    if (n <= Layout::leaf_capacity) {
      write_leaf(root, 0, n, keys, values);
      return BulkLoad::done;
    }
    std::vector<Level> levels;
    int64_t total = 0;
    for (int64_t entries = n, per_node = per_leaf; levels.empty() || entries > Layout::inner_capacity;
         per_node = per_inner) {
      const int64_t nodes = (entries + per_node - 1) / per_node;
      levels.push_back({nodes, entries});
      total += nodes;
      entries = nodes;
    }
    int64_t* used = tree.arena.control + IndexControl::used;
    int64_t first = __atomic_load_n(used, __ATOMIC_RELAXED);
    do {
      if (first + total > tree.arena.capacity()) return BulkLoad::full;
    } while (!__atomic_compare_exchange_n(used, &first, first + total, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    for (Level& level : levels) {
      level.first = static_cast<uint32_t>(first);
      first += level.nodes;
    }
    for (size_t l = 0; l < levels.size(); ++l) {
      parallel_for(levels[l].nodes, std::max<int64_t>(1, grain / per_leaf), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) write_node(tree, levels, l, i, keys, values);
      });
    }
    write_inner(root, levels.size(), 0, levels.back().nodes, levels, keys);
    return BulkLoad::done;
  }

  /// The first key below node i of a level; the least there is where nothing lies to its left.
  static Key border(const std::vector<Level>& levels, size_t level, int64_t i, const int64_t* keys) {
    for (size_t l = level + 1; l-- > 0;) i = levels[l].begin(i);
    return i == 0 ? least_key<key_words>() : Key::at(keys, i);
  }

  static void write_node(const Tree& tree, const std::vector<Level>& levels, size_t l, int64_t i, const int64_t* keys,
                         const int64_t* values) {
    const Level& level = levels[l];
    const Node node = tree.node(level.first + static_cast<uint32_t>(i));
    if (l == 0) {
      write_leaf(node, level.begin(i), level.begin(i + 1), keys, values);
    } else {
      write_inner(node, l, level.begin(i), level.begin(i + 1), levels, keys);
    }
    node.set_pivots();
    const bool last = i + 1 == level.nodes;
    node.set_next(last ? 0 : node.id + 1);
    if (!last) node.set_high(border(levels, l, i + 1, keys));
  }

  static void write_leaf(const Node& leaf, int64_t begin, int64_t end, const int64_t* keys, const int64_t* values) {
    leaf.set_level(0);
    leaf.set_count(static_cast<int>(end - begin));
    for (int w = 0; w < key_words; ++w) {
      for (int64_t i = begin; i < end; ++i)
        write(leaf.words + Layout::keys(true, w) + (i - begin), keys[i * key_words + w]);
    }
    move(leaf.words + Layout::payload(true), values + begin, static_cast<int>(end - begin));
  }

  /// Entries are the nodes [begin, end) of the level below.
  static void write_inner(const Node& node, size_t level, int64_t begin, int64_t end, const std::vector<Level>& levels,
                          const int64_t* keys) {
    node.set_level(static_cast<int>(level));
    node.set_count(static_cast<int>(end - begin));
    for (int64_t i = begin; i < end; ++i) {
      node.set_key(false, static_cast<int>(i - begin), border(levels, level - 1, i, keys));
      node.set_child(static_cast<int>(i - begin), levels[level - 1].first + static_cast<uint32_t>(i));
    }
  }
};

}  // namespace anabranch::index_detail
