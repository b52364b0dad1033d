// Erase on the GPU, bulk-synchronous: a sorted batch leaves its leaves, what is nearly empty is merged a level above.
//
//   places    one group for each key goes down to its leaf
//   hits      a prefix sum puts the keys that are there side by side, equal ones once
//   remove    one group for each leaf closes the gaps
//   then on each level, for the segments of nodes that have one parent, where one of them is sparse:
//   merge     one group goes along the children of the parent and takes the right neighbour in, while one of the two is
//             a quarter full at most and both together three quarters, or one is empty
//   and last  one group lets the root's only child become the root
// Nodes that no parent names are merged like others; nodes of two parents are not, and where their parents merge they
// stay as they are until the next erase beside them. What is merged away goes to the free list under a new version; the
// order of that list, and so which number a later node has, is not determined. Everything else is.
//
// Bytes: the sort's (sort_keys.cuh), a find's lines a key and each leaf that is touched read and written; merging reads
// the headers of all children of a parent one after another, 80 of them at most. Launches: 8 up to 1024 keys, 11
// and the sort's beyond 2047; and 4 to 6 for each level above the leaves that an index of this capacity may have.
#pragma once

#include "anabranch/index/update.cuh"

namespace anabranch {

namespace detail {

template <int key_words>
struct Hits {
  SortedBatch<key_words> batch;
  BatchPlaces found;
  __device__ int32_t operator()(int64_t i) const { return !found.is_absent(i) && batch.is_first(i); }
};

/// ranks[i] hits come before key i.
template <int key_words>
__global__ void __launch_bounds__(kIndexThreads)
    index_hits_kernel(Hits<key_words> hits, const int32_t* ranks, LevelItems items, IndexStatus* status) {
  const auto& [batch, found] = hits;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch.n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const bool is_hit = hits(i);
    status[batch.order[i]] = is_hit ? IndexStatus::changed : IndexStatus::unchanged;
    if (!is_hit) continue;
    batch.key(i).store(items.keys, ranks[i]);
    items.nodes[ranks[i]] = found.leaves[i];
    items.places[ranks[i]] = found.places[i];
  }
}

template <int key_words>
__device__ constexpr int sparse_count(bool leaf) {
  return IndexNode<key_words>::capacity(leaf) / 4;
}

/// What the level above is to look at: one item for each segment, `wanted` where a node of it is sparse.
struct ErasedNodes {
  int64_t* keys;
  bool* wanted;
};

/// Takes the hits out of each leaf.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_remove_kernel(IndexArrays index, LevelItems items, Segments segments, ErasedNodes erased) {
  using Layout = IndexNode<key_words>;
  using Group = LaneGroup<lanes>;
  using Key = DeviceKey<key_words>;
  constexpr int steps = (Layout::leaf_capacity + lanes - 1) / lanes;
  for (int64_t s = Group::first(); s < *segments.count; s += Group::stride()) {
    const int64_t start = segments.starts[s];
    GroupNode<key_words, lanes> leaf(index, items.nodes[start]);
    const int64_t hits = segments.starts[s + 1] - start;
    const int gone = static_cast<int>(hits < leaf.count ? hits : leaf.count), left = leaf.count - gone;
    Key keys[steps];
    int64_t values[steps];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int i = step * lanes + Group::lane();
      if (i >= left) continue;
      // Entry i is what stood behind the first `low` gaps.
      int low = 0, high = gone;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (items.places[start + middle] - middle <= i) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      keys[step] = leaf.key(i + low);
      values[step] = leaf.value(i + low);
    }
    Group::sync();
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int i = step * lanes + Group::lane();
      if (i < left) leaf.set_entry(i, keys[step], values[step]);
    }
    if (Group::lane() != 0) continue;
    leaf.count = left;
    leaf.store_header();
    add_to_size(index, -gone);
    Key::at(items.keys, start).store(erased.keys, s);
    erased.wanted[s] = left <= sparse_count<key_words>(true);
  }
}

template <int key_words, int lanes>
__device__ bool may_merge(const GroupNode<key_words, lanes>& left, const GroupNode<key_words, lanes>& right) {
  const int capacity = IndexNode<key_words>::capacity(left.is_leaf()), sparse = capacity / 4;
  const int both = left.count + right.count;
  if (left.count == 0 || right.count == 0) return true;
  return (left.count <= sparse || right.count <= sparse) && both <= capacity * 3 / 4;
}

/// Goes along the children of a parent and merges neighbours. All lanes of the group hold the same.
template <int key_words, int lanes>
__device__ void merge_children(const IndexArrays& index, GroupNode<key_words, lanes>& parent) {
  using Node = GroupNode<key_words, lanes>;
  using Group = LaneGroup<lanes>;
  Node left(index, parent.child(0));
  int entry = 1, kept = 1;  // the next entry to look at, and those that stay
  uint32_t first_free = 0, last_free = 0;
  for (int64_t steps = index.capacity; steps > 0 && left.id != 0 && left.next != 0; --steps) {
    if (parent.next != 0 && !left.high.less(parent.high)) break;  // the rest is the next parent's
    Node right(index, left.next);
    if (right.id == 0 || right.level != left.level) break;
    const bool is_named = entry < parent.count && parent.child(entry) == right.id;
    const bool merge = may_merge(left, right);
    if (merge) {
      for (int i = Group::lane(); i < right.count; i += lanes)
        left.set_entry(left.count + i, right.key(i), right.payload(i));
      left.count += right.count;
      left.next = right.next;
      left.high = right.high;
    }
    Group::sync();  // all lanes have read what one of them changes now
    if (merge) {
      if (Group::lane() == 0) {
        left.store_header();
        right.count = 0;
        right.next = first_free;
        right.store_header();
      }
      if (first_free == 0) last_free = right.id;
      first_free = right.id;
    } else {
      if (is_named) {
        if (Group::lane() == 0 && kept != entry) parent.set_entry(kept, parent.key(entry), right.id);
        ++kept;
      }
      left = right;
    }
    entry += is_named;
  }
  if (first_free == 0) return;
  // Where the way ended early, which only happens in memory that is no index, the rest of the entries stay.
  parent.count = kept;
  if (Group::lane() == 0) {
    parent.store_header();
    give_back_nodes(index, first_free, last_free);
  }
}

/// Merges the children of each parent that has a sparse one.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_merge_children_kernel(IndexArrays index, LevelItems items, Segments segments, const bool* wanted,
                                ErasedNodes erased) {
  using Group = LaneGroup<lanes>;
  for (int64_t s = Group::first(); s < *segments.count; s += Group::stride()) {
    const int64_t start = segments.starts[s], end = segments.starts[s + 1];
    bool any = false;
    for (int64_t i = start; i < end; ++i) any |= wanted[i];
    GroupNode<key_words, lanes> parent(index, items.nodes[start]);
    any = any && parent.id != 0 && !parent.is_leaf() && parent.count > 0;
    if (any) merge_children(index, parent);
    if (Group::lane() != 0) continue;
    DeviceKey<key_words>::at(items.keys, start).store(erased.keys, s);
    erased.wanted[s] = any && parent.count <= sparse_count<key_words>(false);
  }
}

/// While the root has one child and that one no neighbour, it becomes the root. One group.
template <int key_words, int lanes>
__global__ void index_shrink_root_kernel(IndexArrays index) {
  using Node = GroupNode<key_words, lanes>;
  using Group = LaneGroup<lanes>;
  if (!is_index<key_words>(index)) return;
  for (Node root(index, index_root); !root.is_leaf() && root.count == 1;) {
    Node child(index, root.child(0));
    if (child.id == 0 || child.next != 0 || child.level != root.level - 1) return;
    Group::sync();  // all lanes have read the root
    root.level = child.level;
    root.count = child.count;
    for (int i = Group::lane(); i < child.count; i += lanes) root.set_entry(i, child.key(i), child.payload(i));
    Group::sync();
    if (Group::lane() == 0) {
      root.store_header();
      child.count = 0;
      child.store_header();
      give_back_nodes(index, child.id, child.id);
    }
    Group::sync();
  }
}

/// The scratch of an erase of n > 0 keys.
template <int key_words>
struct EraseScratch {
  int32_t *sort, *sums, *ranks;
  BatchPlaces found;
  LevelItems items;
  Segments segments[2];
  ErasedNodes erased[2];
  int64_t used;

  EraseScratch(int64_t n, int64_t* memory) {
    ScratchStretches scratch(memory);
    sort = scratch.take<int32_t>(sort_keys_scratch<key_words>(n));
    sums = scratch.take<int32_t>(prefix_sum_scratch(n));
    ranks = scratch.take<int32_t>(n + 1);
    found = {scratch.take<uint32_t>(n), scratch.take<int32_t>(n)};
    items = LevelItems::take<key_words>(scratch, n);
    for (Segments& level : segments) level = Segments::take(scratch, n);
    for (ErasedNodes& level : erased) level = {scratch.take<int64_t>(n * key_words), scratch.take<bool>(n)};
    used = scratch.used();
  }
};

}  // namespace detail

/// int64 elements of scratch that index_erase_cuda needs for n keys.
template <int key_words>
int64_t index_erase_scratch(int64_t n) {
  return n == 0 ? 0 : detail::EraseScratch<key_words>(n, nullptr).used;
}

/// keys [n, key_words] -> status [n], n below 2^30: of equal keys the first is erased.
template <int key_words, int lanes = detail::kIndexLanes>
void index_erase_cuda(const IndexArrays& index, int64_t n, const int64_t* keys, IndexStatus* status, int64_t* memory,
                      cudaStream_t stream) {
  using namespace detail;
  if (n == 0) return;
  EraseScratch<key_words> scratch(n, memory);
  const SortedBatch<key_words> batch{n, keys, sort_keys_cuda<key_words>(n, keys, scratch.sort, stream)};
  launch(index_places_kernel<key_words, lanes>, index_grid(n, lanes), kIndexThreads, 0, stream, index, batch, nullptr,
         scratch.found);
  const Hits<key_words> hits{batch, scratch.found};
  prefix_sum_cuda<int32_t>(n, hits, scratch.ranks, scratch.sums, stream);
  LevelItems items = scratch.items;
  items.count = scratch.ranks + n;
  launch(index_hits_kernel<key_words>, index_grid(n, 1), kIndexThreads, 0, stream, hits, scratch.ranks, items, status);
  index_segments_cuda(n, items, scratch.segments[0], scratch.sums, stream);
  launch(index_remove_kernel<key_words, lanes>, index_grid(n, lanes), kIndexThreads, 0, stream, index, items,
         scratch.segments[0], scratch.erased[0]);

  const int64_t bound = n < index.capacity ? n : index.capacity;
  for (int height = 1; height < index_levels<key_words>(index.capacity); ++height) {
    const int below = (height - 1) % 2, here = height % 2;
    items.keys = scratch.erased[below].keys;
    items.count = scratch.segments[below].count;
    launch(index_level_kernel<key_words, lanes>, index_grid(bound, lanes), kIndexThreads, 0, stream, index, items,
           height);
    index_segments_cuda(bound, items, scratch.segments[here], scratch.sums, stream);
    launch(index_merge_children_kernel<key_words, lanes>, index_grid(bound, lanes), kIndexThreads, 0, stream, index,
           items, scratch.segments[here], scratch.erased[below].wanted, scratch.erased[here]);
  }
  launch(index_shrink_root_kernel<key_words, lanes>, 1u, static_cast<unsigned>(lanes), 0, stream, index);
}

}  // namespace anabranch
