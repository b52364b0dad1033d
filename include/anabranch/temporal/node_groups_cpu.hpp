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
    std::vector<int32_t> group_of_slot(slots, none), last;
    for (int64_t p = 0; p < size; ++p) {
      const int64_t node = node_at(p);
      if (node == no_node) continue;
      uint64_t slot = mixed_bits(static_cast<uint64_t>(node)) & (slots - 1);
      while (group_of_slot[slot] != none && nodes_[group_of_slot[slot]] != node) slot = (slot + 1) & (slots - 1);
      const int32_t group = group_of_slot[slot];
      if (group == none) {
        group_of_slot[slot] = static_cast<int32_t>(nodes_.size());
        nodes_.push_back(node);
        first_.push_back(static_cast<int32_t>(p));
        last.push_back(static_cast<int32_t>(p));
      } else {
        next_[last[group]] = static_cast<int32_t>(p);
        last[group] = static_cast<int32_t>(p);
      }
    }
  }

  int64_t size() const { return static_cast<int64_t>(nodes_.size()); }
  int64_t node(int64_t group) const { return nodes_[group]; }
  int64_t first(int64_t group) const { return first_[group]; }
  bool is_single(int64_t group) const { return next_[first_[group]] == none; }

  /// f(p) for the positions of a group, in order.
  template <class F>
  void for_each(int64_t group, F&& f) const {
    for (int32_t p = first_[group]; p != none; p = next_[p]) f(static_cast<int64_t>(p));
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
  std::vector<int32_t> next_, first_;
  std::vector<int64_t> nodes_;
};

}  // namespace anabranch
