// Insert on the GPU, bulk-synchronous: a sorted batch goes into the leaves, what splits is made known a level above.
//
//   places    one group for each key goes down to its leaf; keys that are there get their value if `assign`
//   new keys  a prefix sum puts those that are not there side by side, equal ones once
//   then on each level, for the segments of items that fall into one node:
//   wanted    how many fresh nodes a segment needs; their prefix sums number them
//   grant     one thread takes them all: from those never used, then from the free list
//   split     one group for each fresh node writes it, linked to its right neighbour, and the entry for its parent
//   merge     one group for each segment writes the node that was there, which so leads to the fresh ones
// The order of split and merge keeps every node reachable from its left neighbour; parents name them one level later.
// A root that splits becomes the parent of all its parts, so it has one number for ever.
//
// Equal keys of a batch: the first is inserted, or, where `assign`, the last one's value stays.
//
// Where the memory does not suffice, segments are served in the order of their keys: one may be granted fewer nodes
// than it wants and then keeps the first of its new keys, and those after it keep what their leaves have room for. The
// other keys get status `refused` and the index is valid, as if they had not been in the batch. One node is held back
// for every 16 granted to leaves, for the levels above; where those get none, nodes stay unnamed by a parent.
//
// Bytes: the sort's (sort_keys.cuh), two walks' worth of lines a key, hot for neighbours, and each node that is touched
// read and written. Floor: that last, 2 KB a leaf. Launches: 11 up to 1024 keys, 16 and the sort's beyond 2047; and 7
// to 11 for each level above the leaves that an index of this capacity may have, empty where nothing splits: small
// batches cost their launches. Nodes from the free list cost one dependent trip to memory each.
#pragma once

#include "anabranch/index/grant.cuh"

namespace anabranch {

namespace detail {

template <int key_words>
struct BatchBegins {
  SortedBatch<key_words> batch;
  BatchPlaces found;
  __device__ bool is_new(int64_t i) const { return found.leaves[i] != 0 && found.is_absent(i) && batch.is_first(i); }
  __device__ int32_t operator()(int64_t i) const { return is_new(i); }
};

/// ranks[i] new keys come before key i. A run of equal keys is one item; the last of them may give the value.
template <int key_words>
__global__ void __launch_bounds__(kIndexThreads)
    index_new_keys_kernel(BatchBegins<key_words> begins, const int64_t* values, bool assign, const int32_t* ranks,
                          LevelItems items, bool* refused) {
  const auto& [batch, found] = begins;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch.n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (found.leaves[i] == 0 || !found.is_absent(i)) continue;
    const int32_t item = ranks[i + 1] - 1;
    const bool is_first = batch.is_first(i);
    if (is_first) {
      batch.key(i).store(items.keys, item);
      items.nodes[item] = found.leaves[i];
      items.places[item] = -1 - found.places[i];
      refused[item] = false;
    }
    if (assign ? batch.is_last(i) : is_first) items.payloads[item] = values[batch.order[i]];
  }
}

/// What the kernels of a level work on.
struct InsertLevel {
  IndexArrays index;
  LevelItems items;
  Segments segments;
  const int32_t* before;  // fresh nodes that are wanted before a segment
  FreshNodes fresh;
  LevelItems promoted;  // of the level above
};

/// Each fresh node is written by its group.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads, kIndexBlocksPerSm) index_split_kernel(InsertLevel level) {
  using Group = LaneGroup<lanes>;
  const auto& [index, items, segments, before, fresh, promoted] = level;
  for (int64_t f = Group::first(); f < fresh.grant->nodes; f += Group::stride()) {
    int64_t segment = 0;
    for (int64_t past = *segments.count; past - segment > 1;) {
      const int64_t middle = (segment + past) / 2;
      if (before[middle] <= f) {
        segment = middle;
      } else {
        past = middle;
      }
    }
    const int64_t start = segments.starts[segment], end = segments.starts[segment + 1];
    const GroupNode<key_words, lanes> node(index, items.nodes[start]);
    if (node.id == 0) continue;
    const bool is_root = node.id == index_root;
    const Split split = split_of(node, items, start, end, fresh.grant->nodes - before[segment]);
    const int64_t j = f - before[segment] + !is_root;
    if (j >= split.nodes) continue;
    const MergedEntries<key_words, lanes> entries{node, items, start, split.kept};
    const int64_t first = split.begin(j), last = split.begin(j + 1);
    auto made = node;
    made.id = fresh(f);
    made.words = index.nodes + static_cast<int64_t>(made.id) * index_node_words;
    made.count = static_cast<int>(last - first);
    if (j + 1 < split.nodes) {
      made.next = fresh(f + 1);
      made.high = entries.key_at(last);
    }
    entries.copy(first, last, made);
    if (Group::lane() != 0) continue;
    made.store_header();
    if (j == 0) continue;
    entries.key_at(first).store(promoted.keys, f - is_root);
    promoted.payloads[f - is_root] = made.id;
  }
}

/// Each node that was there is written by the group of its segment. `refused` is null above the leaves.
template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads, kIndexBlocksPerSm)
    index_merge_kernel(InsertLevel level, bool* refused) {
  using Group = LaneGroup<lanes>;
  const auto& [index, items, segments, before, fresh, promoted] = level;
  for (int64_t s = Group::first(); s < *segments.count; s += Group::stride()) {
    const int64_t start = segments.starts[s], end = segments.starts[s + 1];
    GroupNode<key_words, lanes> node(index, items.nodes[start]);
    if (node.id == 0) continue;
    const int64_t granted = fresh.grant->nodes > before[s] ? fresh.grant->nodes - before[s] : 0;
    const Split split = split_of(node, items, start, end, granted);
    if (refused) {
      for (int64_t i = start + split.kept + Group::lane(); i < end; i += lanes) refused[i] = true;
      if (Group::lane() == 0) add_to_size(index, split.kept);
    }
    if (node.id == index_root && split.nodes > 1) {
      Group::sync();  // all lanes have read the node
      ++node.level;
      node.count = 1;
      if (Group::lane() == 0) node.set_entry(0, DeviceKey<key_words>::least(), fresh(before[s]));
    } else {
      const MergedEntries<key_words, lanes> entries{node, items, start, split.kept};
      auto changed = node;
      changed.count = static_cast<int>(split.begin(1));
      if (split.nodes > 1) {
        changed.next = fresh(before[s]);
        changed.high = entries.key_at(changed.count);
      }
      entries.copy(0, changed.count, changed);
      node = changed;
    }
    if (Group::lane() == 0) node.store_header();
  }
}

template <int key_words>
__global__ void __launch_bounds__(kIndexThreads)
    index_insert_status_kernel(BatchBegins<key_words> begins, const int32_t* ranks, const bool* refused,
                               IndexStatus* status) {
  const auto& [batch, found] = begins;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch.n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    IndexStatus& result = status[batch.order[i]];
    if (found.leaves[i] == 0) {
      result = IndexStatus::refused;
    } else if (!found.is_absent(i)) {
      result = IndexStatus::unchanged;
    } else if (refused[ranks[i + 1] - 1]) {
      result = IndexStatus::refused;
    } else {
      result = batch.is_first(i) ? IndexStatus::changed : IndexStatus::unchanged;
    }
  }
}

/// The scratch of an insert of n > 0 keys.
template <int key_words>
struct InsertScratch {
  int32_t *sort, *sums, *ranks, *before;
  BatchPlaces found;
  bool* refused;
  LevelItems levels[2];
  Segments segments;
  FreshNodes fresh;
  int64_t used;

  InsertScratch(int64_t n, int64_t* memory) {
    ScratchStretches scratch(memory);
    sort = scratch.take<int32_t>(sort_keys_scratch<key_words>(n));
    sums = scratch.take<int32_t>(prefix_sum_scratch(n));
    ranks = scratch.take<int32_t>(n + 1);
    before = scratch.take<int32_t>(n + 1);
    found = {scratch.take<uint32_t>(n), scratch.take<int32_t>(n)};
    refused = scratch.take<bool>(n);
    for (LevelItems& items : levels) items = LevelItems::take<key_words>(scratch, n + 1);
    segments = Segments::take(scratch, n);
    fresh = {scratch.take<Grant>(1), scratch.take<uint32_t>(grant_list(n))};
    used = scratch.used();
  }
};

}  // namespace detail

/// int64 elements of scratch that index_insert_cuda needs for n keys.
template <int key_words>
int64_t index_insert_scratch(int64_t n) {
  return n == 0 ? 0 : detail::InsertScratch<key_words>(n, nullptr).used;
}

/// keys [n, key_words], values [n] -> status [n], n below 2^30: as if one by one in the order given.
template <int key_words, int lanes = detail::kIndexLanes>
void index_insert_cuda(const IndexArrays& index, int64_t n, const int64_t* keys, const int64_t* values, bool assign,
                       IndexStatus* status, int64_t* memory, cudaStream_t stream) {
  using namespace detail;
  if (n == 0) return;
  InsertScratch<key_words> scratch(n, memory);
  const SortedBatch<key_words> batch{n, keys, sort_keys_cuda<key_words>(n, keys, scratch.sort, stream)};
  const BatchBegins<key_words> begins{batch, scratch.found};
  launch(index_places_kernel<key_words, lanes>, index_grid(n, lanes), kIndexThreads, 0, stream, index, batch,
         assign ? values : nullptr, scratch.found);
  prefix_sum_cuda<int32_t>(n, begins, scratch.ranks, scratch.sums, stream);
  scratch.levels[0].count = scratch.ranks + n;
  launch(index_new_keys_kernel<key_words>, index_grid(n, 1), kIndexThreads, 0, stream, begins, values, assign,
         scratch.ranks, scratch.levels[0], scratch.refused);

  int64_t bound = n;
  for (int height = 0; height < index_levels<key_words>(index.capacity); ++height) {
    LevelItems& items = scratch.levels[height % 2];
    LevelItems& promoted = scratch.levels[1 - height % 2];
    promoted.count = &scratch.fresh.grant->promotions;
    if (height > 0) {
      launch(index_level_kernel<key_words, lanes>, index_grid(bound, lanes), kIndexThreads, 0, stream, index, items,
             height);
    }
    index_segments_cuda(bound, items, scratch.segments, scratch.sums, stream);
    prefix_sum_cuda<int32_t>(bound, NodesWanted<key_words>{index, items, scratch.segments}, scratch.before,
                             scratch.sums, stream);
    launch(index_grant_kernel, 1u, 1u, 0, stream, index, items, scratch.segments, scratch.before, bound, height == 0,
           scratch.fresh);
    const InsertLevel level{index, items, scratch.segments, scratch.before, scratch.fresh, promoted};
    launch(index_split_kernel<key_words, lanes>, index_grid(bound + 1, lanes), kIndexThreads, 0, stream, level);
    launch(index_merge_kernel<key_words, lanes>, index_grid(bound, lanes), kIndexThreads, 0, stream, level,
           height == 0 ? scratch.refused : nullptr);
    bound = bound < index.capacity ? bound : index.capacity;
  }
  launch(index_insert_status_kernel<key_words>, index_grid(n, 1), kIndexThreads, 0, stream, begins, scratch.ranks,
         scratch.refused, status);
}

}  // namespace anabranch
