// What insert and erase on the GPU have in common: a sorted batch finds its leaves, and what falls into one node is one
// piece of work.
//
// Both go up level by level from the leaves, a fixed number of launches: how much there is to do on a level is a number
// on the device, and threads that have nothing to do end. On each level `LevelItems` are in order of their keys, so
// those of one node lie side by side: a segment, found by a prefix sum over the places where the node changes.
#pragma once

#include "anabranch/index/layout.hpp"
#include "anabranch/index/prefix_sum.cuh"
#include "anabranch/index/sort_keys.cuh"

namespace anabranch::detail {

/// Hands out stretches of one piece of memory; without one it only counts how much there must be.
class ScratchStretches {
 public:
  explicit ScratchStretches(int64_t* memory) : memory_(memory) {}
  template <class T>
  T* take(int64_t count) {
    T* taken = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 7) / 8;
    return taken;
  }
  int64_t used() const { return used_; }

 private:
  int64_t* memory_;
  int64_t used_ = 0;
};

/// Levels that an index of `capacity` nodes may have where inner nodes are a quarter full, and one more. Above them
/// nothing is looked after: nodes that no parent names are still reached from their left neighbours.
template <int key_words>
int index_levels(int64_t capacity) {
  int levels = 2;
  for (int64_t nodes = 1; nodes < capacity && levels < index_max_levels; ++levels)
    nodes *= IndexNode<key_words>::inner_capacity / 4;
  return levels;
}

template <int key_words>
struct SortedBatch {
  using Key = DeviceKey<key_words>;
  int64_t n;
  const int64_t* keys;
  const int32_t* order;
  __device__ Key key(int64_t i) const { return Key::at(keys, order[i]); }
  /// Whether it is the first, or the last, of the keys that are equal to it.
  __device__ bool is_first(int64_t i) const { return i == 0 || !key(i - 1).is(key(i)); }
  __device__ bool is_last(int64_t i) const { return i + 1 == n || !key(i + 1).is(key(i)); }
};

/// Where each key of a sorted batch is, or would be. `places` is the entry, or -1 - the entry that it would become.
struct BatchPlaces {
  uint32_t* leaves;  // 0: this is no index
  int32_t* places;
  __device__ bool is_absent(int64_t i) const { return places[i] < 0; }
};

/// Finds the places, and writes assigned[order[i]] to the entry of the last of equal keys that are there, if not null.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads, kIndexBlocksPerSm)
    index_places_kernel(IndexArrays index, SortedBatch<key_words> batch, const int64_t* assigned, BatchPlaces found) {
  using Group = LaneGroup<lanes>;
  for (int64_t i = Group::first(); i < batch.n; i += Group::stride()) {
    const auto key = batch.key(i);
    const auto leaf = find_node<key_words, lanes>(index, key, 0);
    const int place = leaf.template count_before<false>(key);
    if (Group::lane() != 0) continue;
    const bool here = place < leaf.count && leaf.key(place).is(key);
    found.leaves[i] = leaf.id;
    found.places[i] = here ? place : -1 - place;
    if (here && assigned && batch.is_last(i)) leaf.set_entry(place, key, assigned[batch.order[i]]);
  }
}

/// What is to be done on one level, in order of keys; *count of them.
struct LevelItems {
  int64_t* keys;
  int64_t* payloads;  // insert: values, or nodes that their parent is to name
  uint32_t* nodes;    // where: a node of this level
  int32_t* places;    // the entry of that node, or the one that it would become
  const int32_t* count;

  template <int key_words>
  static LevelItems take(ScratchStretches& scratch, int64_t bound) {
    return {scratch.take<int64_t>(bound * key_words), scratch.take<int64_t>(bound), scratch.take<uint32_t>(bound),
            scratch.take<int32_t>(bound), nullptr};
  }
};

/// The items of one node lie in [starts[s], starts[s + 1]), for s below *count.
struct Segments {
  int32_t* before;  // segments that begin before an item
  int32_t* starts;
  const int32_t* count;

  static Segments take(ScratchStretches& scratch, int64_t bound) {
    return {scratch.take<int32_t>(bound + 1), scratch.take<int32_t>(bound + 1), nullptr};
  }
};

/// The nodes of `level` that the items are for.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads) index_level_kernel(IndexArrays index, LevelItems items, int level) {
  using Group = LaneGroup<lanes>;
  for (int64_t i = Group::first(); i < *items.count; i += Group::stride()) {
    const auto key = DeviceKey<key_words>::at(items.keys, i);
    const auto node = find_node<key_words, lanes>(index, key, level);
    const int place = node.template count_before<false>(key);
    if (Group::lane() != 0) continue;
    items.nodes[i] = node.id;
    items.places[i] = place;
  }
}

struct SegmentBegins {
  LevelItems items;
  __device__ int32_t operator()(int64_t i) const {
    return i < *items.count && (i == 0 || items.nodes[i - 1] != items.nodes[i]);
  }
};

static __global__ void __launch_bounds__(kIndexThreads) index_segments_kernel(LevelItems items, Segments segments) {
  const int64_t count = *items.count;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i <= count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (i == count || SegmentBegins{items}(i)) segments.starts[segments.before[i]] = static_cast<int32_t>(i);
  }
}

/// At most `bound` items.
inline void index_segments_cuda(int64_t bound, const LevelItems& items, Segments& segments, int32_t* sums,
                                cudaStream_t stream) {
  prefix_sum_cuda<int32_t>(bound, SegmentBegins{items}, segments.before, sums, stream);
  launch(index_segments_kernel, index_grid(bound + 1, 1), kIndexThreads, 0, stream, items, segments);
  segments.count = segments.before + bound;
}

/// Gives back a chain of nodes that are linked by `next`.
__device__ inline void give_back_nodes(const IndexArrays& index, uint32_t first, uint32_t last) {
  auto* head = reinterpret_cast<unsigned long long*>(index.control + IndexControl::free_head);
  unsigned long long seen = *head, found;
  while (true) {
    index.nodes[static_cast<int64_t>(last) * index_node_words + IndexNode<1>::next] = static_cast<uint32_t>(seen);
    found = atomicCAS(head, seen, (((seen >> 32) + 1) << 32) | first);
    if (found == seen) return;
    seen = found;
  }
}

__device__ inline void add_to_size(const IndexArrays& index, int64_t keys) {
  atomicAdd(reinterpret_cast<unsigned long long*>(index.control + IndexControl::slots),
            static_cast<unsigned long long>(keys * IndexControl::size_unit));
}

}  // namespace anabranch::detail
