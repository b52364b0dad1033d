// How a node takes the new entries of its segment: alone, or as several nodes of which it is the first.
//
// Entry p of the node and its new entries in one order is found by a bisection of at most 6 steps: new entry k comes
// to stand at places[k] + k. So every lane writes its own entries, and every node that a split makes is written by a
// group of its own, however many there are.
#pragma once

#include "anabranch/index/update.cuh"

namespace anabranch::detail {

/// A node of `old_count` entries and the first `kept` of the new ones become `nodes` nodes.
struct Split {
  int old_count;
  int64_t kept;
  int64_t nodes;
  int capacity;
  bool packed;

  /// The first of all entries that lies in node j of them.
  __device__ int64_t begin(int64_t j) const {
    const int64_t total = old_count + kept;
    if (!packed) return total * j / nodes;
    return j * capacity < total ? j * capacity : total;
  }
  /// Fresh nodes: the root keeps its number and becomes the parent of all.
  __device__ int64_t fresh(bool is_root) const { return nodes == 1 ? 0 : nodes - 1 + is_root; }
};

/// With no more than `granted` fresh nodes. Room is left for a tenth more, as bulk_load does; not where the keys come
/// at the end of everything, as timestamps do: what they leave behind is full.
template <int key_words, int lanes>
__device__ Split split_of(const GroupNode<key_words, lanes>& node, const LevelItems& items, int64_t start, int64_t end,
                          int64_t granted) {
  Split split{node.count, end - start, 1, IndexNode<key_words>::capacity(node.is_leaf()), false};
  const bool is_root = node.id == index_root;
  const int64_t total = split.old_count + split.kept;
  if (total <= split.capacity) return split;
  split.packed = node.next == 0 && node.count > 0 && items.places[start] == node.count;
  const int per_node = split.packed ? split.capacity : split.capacity * 9 / 10;
  const int64_t wanted = (total + per_node - 1) / per_node, most = is_root ? granted : granted + 1;
  split.nodes = wanted < most ? wanted : most;
  if (split.nodes < 2) split.nodes = 1;
  const int64_t room = split.nodes == 1 ? split.capacity : split.nodes * per_node;
  if (room < total) split.kept = room - split.old_count;
  return split;
}

/// The new entries of one segment beside the node that they are for.
template <int key_words, int lanes>
struct MergedEntries {
  using Node = GroupNode<key_words, lanes>;
  using Key = DeviceKey<key_words>;
  using Group = LaneGroup<lanes>;

  const Node& node;
  const LevelItems& items;
  int64_t start, kept;

  /// Which entry stands at p: a new one, or one of the node.
  __device__ void at(int64_t p, Key& key, int64_t& payload) const {
    int64_t low = p > node.count ? p - node.count : 0, high = p < kept ? p : kept;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (items.places[start + middle] + middle < p) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low < kept && items.places[start + low] + low == p) {
      key = Key::at(items.keys, start + low);
      payload = items.payloads[start + low];
    } else {
      const int old = static_cast<int>(p - low);
      key = node.key(old);
      payload = node.payload(old);
    }
  }
  __device__ Key key_at(int64_t p) const {
    Key key;
    int64_t payload;
    at(p, key, payload);
    return key;
  }

  /// Entries [begin, end) become those of `target`, which may be the node itself.
  __device__ void copy(int64_t begin, int64_t end, const Node& target) const {
    using Layout = IndexNode<key_words>;
    constexpr int most =
        Layout::leaf_capacity > Layout::inner_capacity ? Layout::leaf_capacity : Layout::inner_capacity;
    constexpr int steps = (most + lanes - 1) / lanes;
    Key keys[steps];
    int64_t payloads[steps];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int64_t p = begin + step * lanes + Group::lane();
      if (p < end) at(p, keys[step], payloads[step]);
    }
    Group::sync();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int i = step * lanes + Group::lane();
      if (begin + i < end) target.set_entry(i, keys[step], payloads[step]);
    }
  }
};

}  // namespace anabranch::detail
