// A plan: which items each group works on. What the builders compute, and their plain-loop definitions.
//
//   group_offsets [num_groups + 1]   entries of group g are group_offsets[g] .. group_offsets[g + 1]
//   item_ids      [capacity]         which item (row of the input) an entry reads
//   source_ids    [capacity]         where in the builder's input the entry came from
//
// Entries are sorted by group, within a group by item, and equal pairs by their place in the input, so everything that
// walks a plan in order is deterministic. Entries past group_offsets[num_groups] do not exist: builders set them to -1,
// nothing else reads or writes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace anabranch {

/// The parts of a plan as raw arrays; `source_ids` may be null where a consumer has no use for it.
struct PlanArrays {
  int32_t* group_offsets;
  int32_t* item_ids;
  int32_t* source_ids;
  int64_t num_groups;
  int64_t capacity;
};

/// A plan seen item by item: entries of item t are entry_ids[item_offsets[t]] .. entry_ids[item_offsets[t + 1]], which
/// point into the plan in ascending order; group_ids is the group of each of them.
struct TransposedArrays {
  int32_t* item_offsets;
  int32_t* group_ids;
  int32_t* entry_ids;
  int64_t num_items;
};

/// Plan of the pairs (item_of(p), group_of(p)) for p in [0, n); a pair whose group is num_groups does not exist.
/// Pairs beyond the capacity, in sorted order, are dropped.
template <class ItemOf, class GroupOf>
void build_plan_reference(int64_t n, ItemOf item_of, GroupOf group_of, const PlanArrays& plan) {
  std::vector<int64_t> order;
  for (int64_t p = 0; p < n; ++p) {
    if (group_of(p) < plan.num_groups) order.push_back(p);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t left, int64_t right) {
    if (group_of(left) != group_of(right)) return group_of(left) < group_of(right);
    return item_of(left) < item_of(right);
  });
  std::fill(plan.group_offsets, plan.group_offsets + plan.num_groups + 1, 0);
  for (int64_t e = 0; e < plan.capacity; ++e) {
    const bool exists = e < static_cast<int64_t>(order.size());
    plan.item_ids[e] = exists ? static_cast<int32_t>(item_of(order[e])) : -1;
    plan.source_ids[e] = exists ? static_cast<int32_t>(order[e]) : -1;
    if (exists) ++plan.group_offsets[group_of(order[e]) + 1];
  }
  std::partial_sum(plan.group_offsets, plan.group_offsets + plan.num_groups + 1, plan.group_offsets);
}

inline void transpose_plan_reference(const PlanArrays& plan, const TransposedArrays& transposed) {
  std::fill(transposed.group_ids, transposed.group_ids + plan.capacity, -1);
  std::fill(transposed.entry_ids, transposed.entry_ids + plan.capacity, -1);
  int32_t next = 0;
  for (int64_t t = 0; t < transposed.num_items; ++t) {
    transposed.item_offsets[t] = next;
    for (int64_t g = 0; g < plan.num_groups; ++g) {
      for (int32_t e = plan.group_offsets[g]; e < plan.group_offsets[g + 1]; ++e) {
        if (plan.item_ids[e] != t) continue;
        transposed.group_ids[next] = static_cast<int32_t>(g);
        transposed.entry_ids[next++] = e;
      }
    }
  }
  transposed.item_offsets[transposed.num_items] = next;
}

}  // namespace anabranch
