// The positions of a batch by the node they name, in order: how the CPU kernels find a node's entries without sorting.
//
// One pass over the batch fills a hash table of twice its size and chains each node's positions. Bytes: 12 to 20 a
// position, which for the usual batches of thousands stays in the second cache; the rows that the positions stand for
// are the traffic. Groups come in the order of their first positions, whatever the number of workers.
#pragma once

#include <bit>
#include <vector>

#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/events.hpp"

namespace anabranch {

class NodeGroups {
 public:
  /// node_at(p) for p in [0, size), size below 2^30; a position of no_node is in no group.
  template <class NodeAt>
  NodeGroups(int64_t size, const NodeAt& node_at) : next_(size, none) {
    const uint64_t slots = std::bit_ceil(static_cast<uint64_t>(2 * size + 2));
    std::vector<int32_t> group_of_slot(slots, none);
    groups_.reserve(size);
    for (int64_t p = 0; p < size; ++p) {
      const int64_t node = node_at(p);
      if (node == no_node) continue;
      uint64_t slot = mixed_bits(static_cast<uint64_t>(node)) & (slots - 1);
      while (group_of_slot[slot] != none && groups_[group_of_slot[slot]].node != node) slot = (slot + 1) & (slots - 1);
      const int32_t group = group_of_slot[slot];
      if (group == none) {
        group_of_slot[slot] = static_cast<int32_t>(groups_.size());
        groups_.push_back({node, static_cast<int32_t>(p), static_cast<int32_t>(p)});
      } else {
        next_[groups_[group].last] = static_cast<int32_t>(p);
        groups_[group].last = static_cast<int32_t>(p);
      }
    }
  }

  int64_t size() const { return static_cast<int64_t>(groups_.size()); }
  int64_t node(int64_t group) const { return groups_[group].node; }
  int64_t first(int64_t group) const { return groups_[group].first; }
  bool is_single(int64_t group) const { return groups_[group].first == groups_[group].last; }

  /// f(p) for the positions of a group, in order.
  template <class F>
  void for_each(int64_t group, F&& f) const {
    for (int32_t p = groups_[group].first; p != none; p = next_[p]) f(static_cast<int64_t>(p));
  }

  /// f(group) for all groups, on workers that get `grain` units of work each at least, if a position is `work` units.
  template <class F>
  void parallel(int64_t work, int64_t grain, F&& f) const {
    constexpr int64_t tile = 16;
    const int64_t tiles = (size() + tile - 1) / tile;
    parallel_tiles(tiles, workers_for(static_cast<int64_t>(next_.size()) * work, grain), [&](int64_t at, int) {
      for (int64_t group = at * tile; group < std::min(size(), (at + 1) * tile); ++group) f(group);
    });
  }

 private:
  static constexpr int32_t none = -1;
  struct Group {
    int64_t node;
    int32_t first, last;
  };
  std::vector<int32_t> next_;
  std::vector<Group> groups_;
};

}  // namespace anabranch
