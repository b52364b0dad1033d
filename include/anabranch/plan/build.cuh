// Plans on the GPU: the builders and the transpose as stable sorts (sort.cuh), with no size ever read by the host.
//
// Launches and bytes are those of the sort: one launch up to 2048 inputs and 256 groups, three per pass beyond, one
// more for the offsets beyond 256 groups. From top-k indices of T = 32768, K = 8, E = 128: 6.3 MB, three launches.
//
// The host cannot look at device values, so these never fail and never leave their arrays: ids out of range count as
// "no group" here (on the CPU they are errors), and pairs that sort behind the capacity are dropped.
// Scratch is the caller's: `scratch` points to at least the number of int32 that the matching *_scratch function names.
#pragma once

#include "anabranch/plan/build.hpp"
#include "anabranch/plan/offsets.cuh"
#include "anabranch/plan/sort.cuh"

namespace anabranch {

namespace detail {

template <class Index>
struct IndexKeys {
  const Index* ids;
  int64_t num_keys;
  __device__ int32_t operator()(int32_t position) const {
    const Index id = ids[position];
    return id >= 0 && id < num_keys ? static_cast<int32_t>(id) : -1;
  }
};

struct MaskKeys {
  const bool* mask;
  int32_t num_groups;
  __device__ int32_t operator()(int32_t position) const { return mask[position] ? position % num_groups : -1; }
};

/// The item (or the group) of pairs of which both ids must be in range.
struct PairKeys {
  IndexKeys<int32_t> key, other;
  __device__ int32_t operator()(int32_t position) const { return other(position) < 0 ? -1 : key(position); }
};

/// The items of the entries that a plan has.
struct EntryKeys {
  IndexKeys<int32_t> items;
  const int32_t* num_entries;
  __device__ int32_t operator()(int32_t position) const { return position < *num_entries ? items(position) : -1; }
};

struct RowOfPosition {
  int32_t columns;
  __device__ int32_t operator()(int32_t position) const { return position / columns; }
};

struct ItemOfPair {
  const int32_t* item_ids;
  __device__ int32_t operator()(int32_t position) const { return item_ids[position]; }
};

template <class ItemOf>
struct PlanPlaces {
  int32_t *item_ids, *source_ids;
  ItemOf item_of;
  __device__ void place(int64_t at, int32_t position) const {
    item_ids[at] = item_of(position);
    source_ids[at] = position;
  }
  __device__ void clear(int64_t at) const { item_ids[at] = source_ids[at] = -1; }
};

struct TransposedPlaces {
  int32_t *group_ids, *entry_ids;
  const int32_t* group_offsets;
  int64_t num_groups;
  __device__ void place(int64_t at, int32_t entry) const {
    group_ids[at] = group_of_entry(group_offsets, num_groups, entry);
    entry_ids[at] = entry;
  }
  __device__ void clear(int64_t at) const { group_ids[at] = entry_ids[at] = -1; }
};

}  // namespace detail

/// For plan_from_top_k_cuda and plan_from_mask_cuda: n is the number of indices, or of mask elements.
inline int64_t plan_from_rows_scratch(int64_t n, int64_t num_groups, int64_t capacity) {
  return detail::SortScratch::size(n, capacity, detail::sort_passes(num_groups));
}

/// indices [num_items, top_k]; source p = item * top_k + column.
template <class Index>
void plan_from_top_k_cuda(const Index* indices, int64_t num_items, int64_t top_k, const PlanArrays& plan,
                          int32_t* scratch, cudaStream_t stream) {
  const int64_t n = num_items * top_k;
  detail::SortScratch sort(scratch, n, plan.capacity);
  detail::sort_by_key_cuda(
      n, nullptr, detail::IndexKeys<Index>{indices, plan.num_groups}, plan.num_groups, plan.capacity,
      detail::PlanPlaces<detail::RowOfPosition>{plan.item_ids, plan.source_ids, {static_cast<int32_t>(top_k)}},
      plan.source_ids, plan.group_offsets, sort, stream);
}

/// mask [num_items, num_groups]; source p = item * num_groups + group.
inline void plan_from_mask_cuda(const bool* mask, int64_t num_items, const PlanArrays& plan, int32_t* scratch,
                                cudaStream_t stream) {
  const int64_t n = num_items * plan.num_groups;
  const auto columns = static_cast<int32_t>(plan.num_groups);
  detail::SortScratch sort(scratch, n, plan.capacity);
  detail::sort_by_key_cuda(n, nullptr, detail::MaskKeys{mask, columns}, plan.num_groups, plan.capacity,
                           detail::PlanPlaces<detail::RowOfPosition>{plan.item_ids, plan.source_ids, {columns}},
                           plan.source_ids, plan.group_offsets, sort, stream);
}

inline int64_t plan_from_pairs_scratch(int64_t n, int64_t num_items, int64_t num_groups, int64_t capacity) {
  return detail::SortScratch::size(n, capacity, detail::sort_passes(num_items) + detail::sort_passes(num_groups));
}

/// item_ids, group_ids [n] in any order; source p is the pair's place in them. Sorts by item, then stably by group.
inline void plan_from_pairs_cuda(const int32_t* item_ids, const int32_t* group_ids, int64_t n, int64_t num_items,
                                 const PlanArrays& plan, int32_t* scratch, cudaStream_t stream) {
  const detail::IndexKeys<int32_t> items{item_ids, num_items}, groups{group_ids, plan.num_groups};
  detail::SortScratch sort(scratch, n, plan.capacity);
  const int32_t* by_item = detail::sort_lower_digits_cuda(n, nullptr, detail::PairKeys{items, groups}, num_items,
                                                          detail::sort_passes(num_items), sort, stream);
  detail::sort_by_key_cuda(n, by_item, groups, plan.num_groups, plan.capacity,
                           detail::PlanPlaces<detail::ItemOfPair>{plan.item_ids, plan.source_ids, {item_ids}},
                           plan.source_ids, plan.group_offsets, sort, stream);
}

inline int64_t transpose_plan_scratch(int64_t capacity, int64_t num_items) {
  return detail::SortScratch::size(capacity, capacity, detail::sort_passes(num_items));
}

inline void transpose_plan_cuda(const PlanArrays& plan, const TransposedArrays& transposed, int32_t* scratch,
                                cudaStream_t stream) {
  const detail::EntryKeys keys{{plan.item_ids, transposed.num_items}, plan.group_offsets + plan.num_groups};
  detail::SortScratch sort(scratch, plan.capacity, plan.capacity);
  detail::sort_by_key_cuda(
      plan.capacity, nullptr, keys, transposed.num_items, plan.capacity,
      detail::TransposedPlaces{transposed.group_ids, transposed.entry_ids, plan.group_offsets, plan.num_groups},
      transposed.entry_ids, transposed.item_offsets, sort, stream);
}

}  // namespace anabranch
