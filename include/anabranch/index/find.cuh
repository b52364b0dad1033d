// Queries of an index on the GPU: find, lower_bound, range_count and gather, one group of 16 lanes for each.
//
// Bytes of a find: the key in, value and found out, and the lines of node.cuh: about 7 of 64 bytes from memory. Random
// finds are bound by those lines, few of them by L + 1 dependent trips, two a level. A range of m keys goes along m /
// 40 leaves one after another (the next is known only from the one before): long ranges want many of them at once.
// gather copies 8 (key_words + 1) bytes a key, read twice and written once: counts, their sums, and the copies.
// Everything here only reads the index.
#pragma once

#include "anabranch/index/node.cuh"
#include "anabranch/index/prefix_sum.cuh"

namespace anabranch {

namespace detail {

template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_find_kernel(IndexArrays index, int64_t n, const int64_t* keys, int64_t* values, bool* found) {
  using Group = LaneGroup<lanes>;
  for (int64_t query = Group::first(); query < n; query += Group::stride()) {
    const auto key = DeviceKey<key_words>::at(keys, query);
    const auto leaf = find_node<key_words, lanes>(index, key, 0);
    const int i = leaf.template count_before<false>(key);
    if (Group::lane() == 0) {
      const bool here = i < leaf.count && leaf.key(i).is(key);
      values[query] = here ? leaf.value(i) : 0;
      found[query] = here;
    }
  }
}

template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_lower_bound_kernel(IndexArrays index, int64_t n, const int64_t* keys, int64_t* found_keys, int64_t* values,
                             bool* found) {
  using Group = LaneGroup<lanes>;
  for (int64_t query = Group::first(); query < n; query += Group::stride()) {
    const auto key = DeviceKey<key_words>::at(keys, query);
    auto leaf = find_node<key_words, lanes>(index, key, 0);
    int i = leaf.template count_before<false>(key);
    // Every key further right is above this one.
    for (int64_t steps = index.capacity; i >= leaf.count && leaf.next != 0 && steps > 0; --steps) {
      leaf = GroupNode<key_words, lanes>(index, leaf.next);
      i = 0;
    }
    if (Group::lane() == 0) {
      const bool there = i < leaf.count && leaf.is_leaf();
      (there ? leaf.key(i) : DeviceKey<key_words>{}).store(found_keys, query);
      values[query] = there ? leaf.value(i) : 0;
      found[query] = there;
    }
  }
}

/// Calls take(leaf, from, to) for the entries of each leaf in turn that lie in [first, last].
template <int key_words, int lanes, class Take>
__device__ void for_each_leaf(const IndexArrays& index, const DeviceKey<key_words>& first,
                              const DeviceKey<key_words>& last, Take&& take) {
  if (last.less(first)) return;
  auto leaf = find_node<key_words, lanes>(index, first, 0);
  int from = leaf.template count_before<false>(first);
  for (int64_t steps = index.capacity; leaf.id != 0 && leaf.is_leaf() && steps > 0; --steps) {
    const bool goes_on = leaf.is_before(last);
    const int to = goes_on ? leaf.count : leaf.template count_before<true>(last);
    if (from < to) take(leaf, from, to);
    if (!goes_on) return;
    leaf = GroupNode<key_words, lanes>(index, leaf.next);
    from = 0;
  }
}

template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_range_count_kernel(IndexArrays index, int64_t n, const int64_t* first, const int64_t* last, int64_t* counts) {
  using Group = LaneGroup<lanes>;
  using Key = DeviceKey<key_words>;
  for (int64_t query = Group::first(); query < n; query += Group::stride()) {
    int64_t sum = 0;
    for_each_leaf<key_words, lanes>(index, Key::at(first, query), Key::at(last, query),
                                    [&](const GroupNode<key_words, lanes>&, int from, int to) { sum += to - from; });
    if (Group::lane() == 0) counts[query] = sum;
  }
}

template <int key_words, int lanes>
__global__ void __launch_bounds__(kIndexThreads)
    index_gather_kernel(IndexArrays index, int64_t n, const int64_t* first, const int64_t* last, const int64_t* offsets,
                        int64_t capacity, int64_t* keys, int64_t* values) {
  using Group = LaneGroup<lanes>;
  using Key = DeviceKey<key_words>;
  for (int64_t query = Group::first(); query < n; query += Group::stride()) {
    int64_t at = offsets[query];
    if (at >= capacity) continue;
    for_each_leaf<key_words, lanes>(index, Key::at(first, query), Key::at(last, query),
                                    [&](const GroupNode<key_words, lanes>& leaf, int from, int to) {
                                      for (int i = from + Group::lane(); i < to; i += lanes) {
                                        const int64_t place = at + i - from;
                                        if (place >= capacity) break;
                                        leaf.key(i).store(keys, place);
                                        values[place] = leaf.value(i);
                                      }
                                      at += to - from;
                                    });
  }
}

struct StoredCounts {
  const int64_t* counts;
  __device__ int64_t operator()(int64_t i) const { return counts[i]; }
};

}  // namespace detail

/// keys [n, key_words] -> values and found [n]; the value of a key that is not there is 0.
template <int key_words, int lanes = detail::kIndexLanes>
void index_find_cuda(const IndexArrays& index, int64_t n, const int64_t* keys, int64_t* values, bool* found,
                     cudaStream_t stream) {
  if (n == 0) return;
  launch(detail::index_find_kernel<key_words, lanes>, detail::index_grid(n, lanes), detail::kIndexThreads, 0, stream,
         index, n, keys, values, found);
}

/// The first entry not less than each key; where there is none, `found` is false and key and value are 0.
template <int key_words, int lanes = detail::kIndexLanes>
void index_lower_bound_cuda(const IndexArrays& index, int64_t n, const int64_t* keys, int64_t* found_keys,
                            int64_t* values, bool* found, cudaStream_t stream) {
  if (n == 0) return;
  launch(detail::index_lower_bound_kernel<key_words, lanes>, detail::index_grid(n, lanes), detail::kIndexThreads, 0,
         stream, index, n, keys, found_keys, values, found);
}

/// Keys in [first[i], last[i]] for each i.
template <int key_words, int lanes = detail::kIndexLanes>
void index_range_count_cuda(const IndexArrays& index, int64_t n, const int64_t* first, const int64_t* last,
                            int64_t* counts, cudaStream_t stream) {
  if (n == 0) return;
  launch(detail::index_range_count_kernel<key_words, lanes>, detail::index_grid(n, lanes), detail::kIndexThreads, 0,
         stream, index, n, first, last, counts);
}

/// int64 elements of scratch that index_gather_cuda needs for n ranges.
inline int64_t index_gather_scratch(int64_t n) { return n + detail::prefix_sum_scratch(n); }

/// The entries of each range behind those of the one before. offsets [n + 1] says where each begins, whatever the
/// capacity; entries from `capacity` on are not written.
template <int key_words, int lanes = detail::kIndexLanes>
void index_gather_cuda(const IndexArrays& index, int64_t n, const int64_t* first, const int64_t* last, int64_t capacity,
                       int64_t* offsets, int64_t* keys, int64_t* values, int64_t* scratch, cudaStream_t stream) {
  index_range_count_cuda<key_words, lanes>(index, n, first, last, scratch, stream);
  detail::prefix_sum_cuda<int64_t>(n, detail::StoredCounts{scratch}, offsets, scratch + n, stream);
  if (n == 0 || capacity == 0) return;
  launch(detail::index_gather_kernel<key_words, lanes>, detail::index_grid(n, lanes), detail::kIndexThreads, 0, stream,
         index, n, first, last, offsets, capacity, keys, values);
}

}  // namespace anabranch
