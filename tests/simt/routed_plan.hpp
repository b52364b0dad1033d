// A random plan for the tests of what consumes plans.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "anabranch/plan/build.hpp"

/// A random plan with an empty first group, capacity beyond its entries, and its transpose.
struct TestPlan {
  TestPlan(int64_t num_items_, int64_t num_groups_, int64_t capacity_, double density, std::mt19937& random)
      : num_items(num_items_), num_groups(num_groups_), capacity(capacity_) {
    std::vector<bool> mask(num_items * num_groups);
    for (int64_t p = 0; p < num_items * num_groups; ++p)
      mask[p] = p % num_groups != 0 && random() % 1000 < density * 1000;
    offsets.resize(num_groups + 1);
    items.resize(capacity);
    sources.resize(capacity);
    item_offsets.resize(num_items + 1);
    group_ids.resize(capacity);
    entry_ids.resize(capacity);
    const anabranch::PlanArrays plan{offsets.data(), items.data(), sources.data(), num_groups, capacity};
    anabranch::build_plan_reference(
        num_items * num_groups, [&](int64_t p) { return p / num_groups; },
        [&](int64_t p) { return mask[p] ? p % num_groups : num_groups; }, plan);
    anabranch::transpose_plan_reference(plan, {item_offsets.data(), group_ids.data(), entry_ids.data(), num_items});
    // Ids past the end that look like real ones: whoever believes them gives a wrong answer.
    std::fill(items.begin() + num_entries(), items.end(), 0);
    std::fill(entry_ids.begin() + num_entries(), entry_ids.end(), 0);
  }
  int64_t num_entries() const { return offsets.back(); }

  int64_t num_items, num_groups, capacity;
  std::vector<int32_t> offsets, items, sources, item_offsets, group_ids, entry_ids;
};
