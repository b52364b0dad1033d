// Fresh nodes for one level of an insert: how many each segment wants, and who gets them.
//
// One thread takes all of a level's nodes at once and numbers them in order of keys, so that which node is which does
// not depend on who came first. Those never used are taken before the free list is walked, a trip to memory each.
#pragma once

#include "anabranch/index/split.cuh"

namespace anabranch::detail {

/// What one level was granted.
struct Grant {
  int32_t nodes;       // numbered from 0 in order of keys
  int32_t promotions;  // those among them that a parent is to name
  int32_t never_used;  // the first so many of them are first_never_used, ...; the others are listed
  uint32_t first_never_used;
};

struct FreshNodes {
  Grant* grant;
  uint32_t* listed;
  __device__ uint32_t operator()(int64_t i) const {
    return i < grant->never_used ? grant->first_never_used + static_cast<uint32_t>(i) : listed[i - grant->never_used];
  }
};

template <int key_words>
struct NodesWanted {
  IndexArrays index;
  LevelItems items;
  Segments segments;
  __device__ int32_t operator()(int64_t s) const {
    if (s >= *segments.count) return 0;
    const int64_t start = segments.starts[s], end = segments.starts[s + 1];
    const GroupNode<key_words, kIndexLanes> node(index, items.nodes[start]);
    if (node.id == 0) return 0;
    const Split split = split_of(node, items, start, end, end - start + 1);
    return static_cast<int32_t>(split.fresh(node.id == index_root));
  }
};

/// Takes nodes for one level. `before[bound]` is how many are wanted for at most `bound` items; the list has room for
/// grant_list(bound) nodes.
inline int64_t grant_list(int64_t bound) { return bound + bound / 16 + 2; }

static __global__ void index_grant_kernel(IndexArrays index, LevelItems items, Segments segments, const int32_t* before,
                                          int64_t bound, bool leaves, FreshNodes fresh) {
  const bool is_root = *segments.count > 0 && items.nodes[0] == index_root;
  int64_t wanted = before[bound] < bound + is_root ? before[bound] : bound + is_root;
  const int64_t held_back = leaves ? wanted / 16 : 0;
  const int64_t used = index.control[IndexControl::used];
  const int64_t never_used = used > index_root && used < index.capacity ? index.capacity - used : 0;
  auto* free_head = reinterpret_cast<uint64_t*>(index.control + IndexControl::free_head);
  const auto next_free = [&](uint32_t id) {
    return static_cast<uint32_t>(index.nodes[static_cast<int64_t>(id) * index_node_words + IndexNode<1>::next]);
  };

  int64_t num_listed = 0;
  if (wanted > 0) {
    for (auto id = static_cast<uint32_t>(*free_head);
         never_used + num_listed < wanted + held_back && id != 0 && id < index.capacity; id = next_free(id))
      fresh.listed[num_listed++] = id;
  }
  int64_t available = never_used + num_listed;
  if (available > index.capacity) available = index.capacity;
  if (available < wanted + held_back) {
    wanted = wanted < available ? wanted : available;
    while (leaves && wanted + wanted / 16 > available) --wanted;
    if (is_root && wanted < 2) wanted = 0;
  }
  const int64_t from_never_used = wanted < never_used ? wanted : never_used, from_list = wanted - from_never_used;
  *fresh.grant = {static_cast<int32_t>(wanted), static_cast<int32_t>(wanted - (is_root && wanted > 0)),
                  static_cast<int32_t>(from_never_used), static_cast<uint32_t>(used)};
  if (from_never_used > 0) index.control[IndexControl::used] = used + from_never_used;
  if (from_list > 0) {
    const uint64_t rest = next_free(fresh.listed[from_list - 1]);
    *free_head = ((*free_head >> 32) + 1) << 32 | rest;
  }
}

}  // namespace anabranch::detail
