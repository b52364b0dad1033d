// Many operations at once: their misses overlap.
//
// A group of searches goes down together, level by level; each asks for the next node's cache lines and lets the others
// have their turn before it looks. So a search costs what its instructions cost, and not four trips to memory one after
// another. Batches that write are sorted first: equal keys keep the order they came in, neighbours find their leaf hot,
// and threads get stretches of keys of their own.
//
// Floor of a find among n keys: header, a part of the keys and one value line of a leaf, 4 lines of 64 bytes, and as
// many of the node above where there are more of those than the cache holds, against 50 to 70 million random lines a
// second that one core was measured to fetch. Fetching all keys, 9 lines, was a quarter slower.
#pragma once

#include <algorithm>

#include "anabranch/core/parallel.hpp"
#include "anabranch/index/leaf_run.hpp"
#include "anabranch/index/scan.hpp"
#include "anabranch/index/sort_entries.hpp"

namespace anabranch::index_detail {

template <CpuIsa isa, int key_words>
struct Batch {
  using Tree = index_detail::Tree<isa, key_words>;
  using Node = typename Tree::Node;
  using Place = typename Tree::Place;
  using Key = IndexKey<key_words>;
  using Entry = typename SortedEntries<isa, key_words>::Entry;

  /// Searches that go down together: as many as fill the core's buffers for lines under way.
  static constexpr int group = 24;
  /// Keys worth another thread.
  static constexpr int64_t grain = 2048;

  static IndexStatus status_of(Outcome outcome) {
    return outcome == Outcome::yes  ? IndexStatus::changed
           : outcome == Outcome::no ? IndexStatus::unchanged
                                    : IndexStatus::refused;
  }

  static void find(const Tree& tree, int64_t n, const int64_t* keys, int64_t* values, bool* found) {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += group) {
        const int count = static_cast<int>(std::min<int64_t>(group, end - first));
        Probes probes(tree, keys, first, count);
        probes.find_leaves(tree);
        int position[group];
        for (int g = 0; g < count; ++g) {
          const Node leaf = probes.places[g].node;
          const int i = probes.lower_bound(g);
          position[g] = leaf.holds(i, probes.keys[g]) ? i : -1;
          if (position[g] >= 0) __builtin_prefetch(leaf.words + IndexNode<key_words>::payload(true) + i);
        }
        for (int g = 0; g < count; ++g) {
          const Place at = probes.places[g];
          const bool here = position[g] >= 0;
          uint64_t value = here ? at.node.value(position[g]) : 0;
          bool is_found = here;
          if (probes.lost[g] || !at.unchanged()) [[unlikely]] {
            value = 0;
            is_found = tree.find(probes.keys[g], value);
          }
          values[first + g] = static_cast<int64_t>(value);
          found[first + g] = is_found;
        }
      }
    });
  }

  /// The first key that is not less than each; where there is none, `found` is false and key and value are 0.
  static void lower_bound(const Tree& tree, int64_t n, const int64_t* keys, int64_t* found_keys, int64_t* values,
                          bool* found) {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += group) {
        const int count = static_cast<int>(std::min<int64_t>(group, end - first));
        Probes probes(tree, keys, first, count);
        probes.find_leaves(tree);
        for (int g = 0; g < count; ++g) {
          const auto& [leaf, version] = probes.places[g];
          const int i = probes.lower_bound(g);
          bool there = i < leaf.leaf_count();
          Key key{};
          uint64_t value = 0;
          if (there) {
            key = leaf.key(true, i);
            value = leaf.value(i);
          }
          if (!there || probes.lost[g] || !probes.places[g].unchanged()) {
            key = Key{};
            value = 0;
            there = Scan<isa, key_words>::lower_bound(tree, probes.keys[g], key, value);
          }
          for (int w = 0; w < key_words; ++w) found_keys[(first + g) * key_words + w] = key[w];
          values[first + g] = static_cast<int64_t>(value);
          found[first + g] = there;
        }
      }
    });
  }

  /// Keys in [first[i], last[i]] for each i.
  static void range_count(const Tree& tree, int64_t n, const int64_t* first, const int64_t* last, int64_t* counts) {
    parallel_for(n, grain / 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        counts[i] = Scan<isa, key_words>::range_count(tree, Key::at(first, i), Key::at(last, i));
    });
  }

  /// As if one by one in the order given: of equal keys the first is inserted, and where `assign` the last one's value
  /// stays.
  static void insert(const Tree& tree, int64_t n, const int64_t* keys, const int64_t* values, bool assign,
                     IndexStatus* status) {
    write(tree, n, keys, [&](IndexWriter& writer, const Entry* entries, int64_t count) {
      return LeafRun<isa, key_words>::insert(
          tree, writer, count, assign, [&](int64_t i) { return entries[i].key; },
          [&](int64_t i) { return static_cast<uint64_t>(values[entries[i].index]); },
          [&](int64_t i, Outcome outcome) { status[entries[i].index] = status_of(outcome); });
    });
  }

  static void erase(const Tree& tree, int64_t n, const int64_t* keys, IndexStatus* status) {
    write(tree, n, keys, [&](IndexWriter& writer, const Entry* entries, int64_t count) {
      return LeafRun<isa, key_words>::erase(
          tree, writer, count, [&](int64_t i) { return entries[i].key; },
          [&](int64_t i, Outcome outcome) { status[entries[i].index] = status_of(outcome); });
    });
  }

 private:
  /// A group of searches, side by side.
  struct Probes {
    Key keys[group];
    Place places[group];
    bool lost[group] = {};  // someone wrote where this one was; it is for the plain search
    int part[group] = {};   // of one-word keys: where in the leaf to look
    int count;

    Probes(const Tree& tree, const int64_t* all_keys, int64_t first, int count) : count(count) {
      const Place root = tree.enter(tree.node(index_root));
      for (int g = 0; g < count; ++g) {
        keys[g] = Key::at(all_keys, first + g);
        places[g] = root;
      }
    }

    /// Every stride-th of the entries, as far as there are any.
    Probes(const Tree& tree, const Entry* entries, int64_t num_entries, int64_t stride)
        : count(static_cast<int>(std::min<int64_t>(group, (num_entries + stride - 1) / stride))) {
      const Place root = tree.enter(tree.node(index_root));
      for (int g = 0; g < count; ++g) {
        keys[g] = entries[g * stride].key;
        places[g] = root;
      }
    }

    /// Until each is in its leaf, and the keys that lower_bound looks at are on their way.
    void find_leaves(const Tree& tree) {
      if constexpr (key_words == 1) {
        descend_by_parts(tree);
      } else {
        descend(tree);
      }
    }

    [[gnu::always_inline]] int lower_bound(int g) const {
      if constexpr (key_words == 1) return places[g].node.lower_bound(keys[g], part[g]);
      return places[g].node.lower_bound(keys[g]);
    }

    /// Until each is in its leaf, all of whose keys are then on their way.
    void descend(const Tree& tree) {
      uint32_t next[group];
      bool moving = true;
      for (int steps = 0; moving; ++steps) {
        moving = false;
        for (int g = 0; g < count; ++g) {
          next[g] = Tree::toward(places[g].node, keys[g]);
          if (next[g] == 0 || lost[g]) continue;
          if (!tree.exists(next[g]) || steps == optimistic_steps) {
            lost[g] = true;
            continue;
          }
          tree.node(next[g]).prefetch(places[g].node.level() - 1);
          moving = true;
        }
        for (int g = 0; moving && g < count; ++g) {
          if (next[g] == 0 || lost[g]) continue;
          const Place below = tree.enter(tree.node(next[g]));
          lost[g] = !places[g].unchanged();
          places[g] = below;
        }
      }
    }

    /// The same by the nodes' pivots: of a node only its header and one part are fetched, 4 lines of a leaf where all
    /// its keys are 9. A level takes three turns: headers, parts, links.
    void descend_by_parts(const Tree& tree) {
      uint32_t next[group];
      bool moving = true;
      for (int steps = 0; moving; ++steps) {
        for (int g = 0; g < count; ++g) {
          const Node at = places[g].node;
          next[g] = at.is_before(keys[g]) ? at.next() : 0;
          if (next[g] != 0) continue;
          part[g] = at.part_of(keys[g]);
          at.prefetch_part(at.level() == 0, part[g]);
        }
        moving = false;
        for (int g = 0; g < count; ++g) {
          const Node at = places[g].node;
          if (next[g] == 0 && at.level() > 0) next[g] = at.child(at.entry_of(keys[g], part[g]));
          if (next[g] == 0 || lost[g]) continue;
          if (!tree.exists(next[g]) || steps == optimistic_steps) {
            lost[g] = true;
            continue;
          }
          __builtin_prefetch(tree.node(next[g]).words);
          moving = true;
        }
        for (int g = 0; moving && g < count; ++g) {
          if (next[g] == 0 || lost[g]) continue;
          const Place below = tree.enter(tree.node(next[g]));
          lost[g] = !places[g].unchanged();
          places[g] = below;
        }
      }
    }
  };

  /// apply(writer, entries, count) does some of the entries, the first at least, and says how many; the keys are in
  /// order, equal keys by index. Threads share out stretches of keys.
  template <class Apply>
  static void write(const Tree& tree, int64_t n, const int64_t* keys, Apply&& apply) {
    const SortedEntries<isa, key_words> sorted(n, keys);
    const Entry* order = sorted.entries.data();
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      // Equal keys belong to the thread that has the first of them, be it that others are left with none.
      while (begin > 0 && begin < end && order[begin].key == order[begin - 1].key) ++begin;
      if (begin == end) return;
      while (end < n && order[end].key == order[end - 1].key) ++end;
      IndexWriter writer(tree.arena);
      // As many keys as the last leaf took are likely to share the next one, so one of them fetches it.
      for (int64_t at = begin, fetched = begin, stride = 1; at < end; at += stride) {
        if (at >= fetched) {
          Probes(tree, order + at, end - at, stride).descend(tree);
          fetched = at + group * stride;
        }
        stride = apply(writer, order + at, end - at);
      }
    });
  }
};

}  // namespace anabranch::index_detail
