// Ordered reads: the next and the previous key, ranges, and counting keys in a range.
//
// Each leaf is seen in one piece; between two leaves others may write. So a scan never sees a key twice or out of
// order, and it sees every key that is there from its beginning to its end. Bounds are inclusive, so that every key can
// be one.
//
// A scan of n keys moves 16 n bytes and one header per leaf; the next leaf is asked for while this one is copied.
#pragma once

#include "anabranch/index/tree.hpp"

namespace anabranch::index_detail {

template <int key_words>
constexpr IndexKey<key_words> least_key() {
  IndexKey<key_words> key;
  key.fill(std::numeric_limits<int64_t>::min());
  return key;
}

template <int key_words>
constexpr IndexKey<key_words> greatest_key() {
  IndexKey<key_words> key;
  key.fill(std::numeric_limits<int64_t>::max());
  return key;
}

/// Makes `key` the one after it, or the one before it; false where there is none.
template <int key_words>
constexpr bool step_key(IndexKey<key_words>& key, bool up) {
  const int64_t last = up ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min();
  for (int w = key_words; w-- > 0;) {
    if (key[w] != last) {
      key[w] += up ? 1 : -1;
      for (int low = w + 1; low < key_words; ++low)
        key[low] = up ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
      return true;
    }
  }
  return false;
}

template <CpuIsa isa, int key_words>
struct Scan {
  using Tree = index_detail::Tree<isa, key_words>;
  using Node = typename Tree::Node;
  using Place = typename Tree::Place;
  using Key = IndexKey<key_words>;

  /// Calls take(leaf, from, to) for the entries of one leaf after another that lie in [first, last]; what it saw counts
  /// when keep() is called behind it, and is to be forgotten when take() is called again. keep() says whether to go on.
  template <class Take, class Keep>
  [[gnu::always_inline]] static void walk(const Tree& tree, Key first, const Key& last, Take&& take, Keep&& keep) {
    if (last < first) return;
    int from = 0, to = 0;
    uint32_t next = 0;
    Key border{};
    const auto look = [&](const Node& leaf) {
      const int count = leaf.leaf_count();
      from = leaf.lower_bound(first);
      next = leaf.next();
      border = leaf.high();
      if (next != 0 && tree.exists(next)) __builtin_prefetch(tree.node(next).words);
      to = next != 0 && !(last < border) ? count : upper_bound(leaf, last);
      take(leaf, from, std::max(from, to));
    };
    while (true) {
      Place at;
      const bool seen = tree.read_leaf(first, [&](const Node& leaf, uint64_t version) {
        at = {leaf, version};
        look(leaf);
      });
      if (!seen) return;
      // From here on sideways, as long as nobody has changed the leaf that was left.
      while (true) {
        if (!keep() || next == 0 || last < border || !(first < border)) return;
        first = border;
        if (!tree.exists(next)) break;
        const Node right = tree.node(next);
        right.prefetch(0);
        const Place then = tree.enter(right);
        if (!at.unchanged()) break;
        at = then;
        look(right);
        if (!at.unchanged()) break;
      }
    }
  }

  /// The first key that is not less than `key`; false where there is none.
  static bool lower_bound(const Tree& tree, Key key, Key& found, uint64_t& value) {
    bool there = false, more = true;
    while (!there && more) {
      Key border{};
      const bool seen = tree.read_leaf(key, [&](const Node& leaf, uint64_t) {
        const int i = leaf.lower_bound(key);
        there = i < leaf.leaf_count();
        more = leaf.next() != 0;
        border = leaf.high();
        if (there) {
          found = leaf.key(true, i);
          value = leaf.value(i);
        }
      });
      if (!seen) return false;  // links are damaged, and `there` is of an attempt that came to nothing
      if (!(there || key < border)) break;
      key = border;
    }
    return there;
  }

  /// The last key that is not greater than `key`; false where there is none.
  static bool last_until(const Tree& tree, Key key, Key& found, uint64_t& value) {
    while (true) {
      bool there = false;
      Key border = least_key<key_words>();
      const bool seen = tree.read_leaf(
          key,
          [&](const Node& leaf, uint64_t) {
            // An attempt that came to nothing may have left its border here, and the root may be a leaf since.
            if (leaf.id == index_root) border = least_key<key_words>();
            const int end = upper_bound(leaf, key);
            there = end > 0;
            if (there) {
              found = leaf.key(true, end - 1);
              value = leaf.value(end - 1);
            }
          },
          [&](const Node& node, uint32_t) {
            border = node.is_before(key) ? node.high() : node.key(false, node.entry_of(key));
          });
      if (!seen) return false;
      if (there) return true;
      if (key < border) return false;  // links are damaged
      key = border;
      if (!step_key<key_words>(key, false)) return false;
    }
  }

  /// Up to `limit` entries of [first, last] in order; their number. Key i is written to keys[i * key_words].
  static int64_t range(const Tree& tree, const Key& first, const Key& last, int64_t limit, int64_t* keys,
                       int64_t* values) {
    int64_t written = 0, taken = 0;
    walk(
        tree, first, last,
        [&](const Node& leaf, int from, int to) {
          taken = std::min<int64_t>(to - from, limit - written);
          if (taken <= 0) return;
          constexpr int payload = IndexNode<key_words>::payload(true);
          move(values + written, leaf.words + payload + from, static_cast<int>(taken));
          if constexpr (key_words == 1) {
            move(keys + written, leaf.words + IndexNode<1>::columns + from, static_cast<int>(taken));
          } else {
            for (int i = 0; i < taken; ++i) {
              const Key key = leaf.key(true, from + i);
              for (int w = 0; w < key_words; ++w) keys[(written + i) * key_words + w] = key[w];
            }
          }
        },
        [&] {
          written += taken;
          return written < limit;
        });
    return written;
  }

  /// Keys in [first, last].
  static int64_t range_count(const Tree& tree, const Key& first, const Key& last) {
    int64_t sum = 0, taken = 0;
    walk(
        tree, first, last, [&](const Node&, int from, int to) { taken = to - from; },
        [&] {
          sum += taken;
          return true;
        });
    return sum;
  }

  static int upper_bound(const Node& leaf, const Key& key) {
    Key after = key;
    return step_key<key_words>(after, true) ? leaf.lower_bound(after) : leaf.leaf_count();
  }
};

}  // namespace anabranch::index_detail
