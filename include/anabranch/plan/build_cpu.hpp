// Plans on the CPU: one stable counting sort serves every builder and the transpose.
//
// n inputs, G keys, W chunks: each chunk counts its keys (n reads), one scan turns the W x G counts into places, each
// chunk then writes its entries (n reads, 2n writes). Chunks are contiguous and ordered, so the sort is stable and the
// result does not depend on W. Bytes: 2 x key + 8n written; the counts (4WG) stay in cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "anabranch/core/parallel.hpp"
#include "anabranch/plan/build.hpp"

namespace anabranch {

/// Stable sort of positions [0, n) by key_of(p) in [0, num_keys]; key num_keys drops the position. Writes offsets
/// [num_keys + 1] and calls place(destination, p, key) for every destination below `capacity`. Returns the number kept.
template <class KeyOf, class Place>
int64_t counting_sort(int64_t n, int64_t num_keys, int64_t capacity, KeyOf key_of, int32_t* offsets, Place place) {
  constexpr int64_t grain = 16384;
  // The counts must stay small beside the input, or many keys would make more work than the sort itself.
  const int64_t affordable = std::max<int64_t>(1, 4 * n / std::max<int64_t>(1, num_keys));
  const int num_chunks = static_cast<int>(std::min<int64_t>(workers_for(n, grain), affordable));
  std::vector<int32_t> counts(static_cast<size_t>(num_chunks) * num_keys, 0);
  auto chunk_begin = [&](int chunk) { return n * chunk / num_chunks; };

  parallel_workers(num_chunks, [&](int chunk) {
    int32_t* count = counts.data() + static_cast<int64_t>(chunk) * num_keys;
    for (int64_t p = chunk_begin(chunk); p < chunk_begin(chunk + 1); ++p) {
      if (const int64_t key = key_of(p); key < num_keys) ++count[key];
    }
  });
  int64_t next = 0;
  for (int64_t key = 0; key < num_keys; ++key) {
    offsets[key] = static_cast<int32_t>(std::min(next, capacity));
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      int32_t& count = counts[static_cast<int64_t>(chunk) * num_keys + key];
      const int32_t begin = static_cast<int32_t>(next);
      next += count;
      count = begin;
    }
  }
  const int64_t kept = std::min(next, capacity);
  offsets[num_keys] = static_cast<int32_t>(kept);
  parallel_workers(num_chunks, [&](int chunk) {
    int32_t* destination = counts.data() + static_cast<int64_t>(chunk) * num_keys;
    for (int64_t p = chunk_begin(chunk); p < chunk_begin(chunk + 1); ++p) {
      if (const int64_t key = key_of(p); key < num_keys && destination[key]++ < capacity) {
        place(destination[key] - 1, p, key);
      }
    }
  });
  return kept;
}

/// build_plan_reference where item_of is already ascending in p, as it is for row-major indices and masks.
template <class ItemOf, class GroupOf>
void build_plan_cpu(int64_t n, ItemOf item_of, GroupOf group_of, const PlanArrays& plan) {
  const int64_t kept = counting_sort(n, plan.num_groups, plan.capacity, group_of, plan.group_offsets,
                                     [&](int32_t e, int64_t p, int64_t) {
                                       plan.item_ids[e] = static_cast<int32_t>(item_of(p));
                                       plan.source_ids[e] = static_cast<int32_t>(p);
                                     });
  std::fill(plan.item_ids + kept, plan.item_ids + plan.capacity, -1);
  std::fill(plan.source_ids + kept, plan.source_ids + plan.capacity, -1);
}

/// build_plan_reference for pairs in any order: two stable passes, by item and then by group.
template <class ItemOf, class GroupOf>
void build_plan_from_unsorted_cpu(int64_t n, int64_t num_items, ItemOf item_of, GroupOf group_of,
                                  const PlanArrays& plan) {
  std::vector<int32_t> by_item(n), item_offsets(num_items + 1);
  counting_sort(n, num_items, n, item_of, item_offsets.data(),
                [&](int32_t destination, int64_t p, int64_t) { by_item[destination] = static_cast<int32_t>(p); });
  build_plan_cpu(
      n, [&](int64_t p) { return item_of(by_item[p]); }, [&](int64_t p) { return group_of(by_item[p]); }, plan);
  for (int32_t e = 0; e < plan.group_offsets[plan.num_groups]; ++e) plan.source_ids[e] = by_item[plan.source_ids[e]];
}

inline void transpose_plan_cpu(const PlanArrays& plan, const TransposedArrays& transposed) {
  const int64_t num_entries = plan.group_offsets[plan.num_groups];
  counting_sort(
      num_entries, transposed.num_items, num_entries, [&](int64_t e) -> int64_t { return plan.item_ids[e]; },
      transposed.item_offsets,
      [&](int32_t destination, int64_t e, int64_t) {
        const int32_t* after =
            std::upper_bound(plan.group_offsets, plan.group_offsets + plan.num_groups + 1, static_cast<int32_t>(e));
        transposed.group_ids[destination] = static_cast<int32_t>(after - plan.group_offsets) - 1;
        transposed.entry_ids[destination] = static_cast<int32_t>(e);
      });
  std::fill(transposed.group_ids + num_entries, transposed.group_ids + plan.capacity, -1);
  std::fill(transposed.entry_ids + num_entries, transposed.entry_ids + plan.capacity, -1);
}

}  // namespace anabranch
