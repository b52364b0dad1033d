// The plan room's builders and transpose: CUDA kernels on the harness against their plain-loop definitions.
#include <algorithm>
#include <random>
#include <vector>

#include "anabranch/plan/build.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

/// A plan in guarded buffers, and what it must be.
struct PlanPair {
  PlanPair(int64_t num_groups_, int64_t capacity_)
      : num_groups(num_groups_),
        capacity(capacity_),
        group_offsets(num_groups + 1),
        item_ids(capacity),
        source_ids(capacity),
        expected_offsets(num_groups + 1),
        expected_items(capacity),
        expected_sources(capacity) {}

  PlanArrays arrays() { return {group_offsets.data(), item_ids.data(), source_ids.data(), num_groups, capacity}; }
  PlanArrays expected() {
    return {expected_offsets.data(), expected_items.data(), expected_sources.data(), num_groups, capacity};
  }
  void check(const char* what) const {
    expect(group_offsets.values() == expected_offsets, what);
    expect(item_ids.values() == expected_items, what);
    expect(source_ids.values() == expected_sources, what);
  }

  int64_t num_groups, capacity;
  Guarded<int32_t> group_offsets, item_ids, source_ids;
  std::vector<int32_t> expected_offsets, expected_items, expected_sources;
};

void check_transpose(PlanPair& plan, int64_t num_items) {
  Guarded<int32_t> offsets(num_items + 1), groups(plan.capacity), entries(plan.capacity);
  std::vector<int32_t> expected_offsets(num_items + 1), expected_groups(plan.capacity), expected_entries(plan.capacity);
  transpose_plan_reference(plan.expected(),
                           {expected_offsets.data(), expected_groups.data(), expected_entries.data(), num_items});
  for (int64_t e = plan.expected_offsets.back(); e < plan.capacity; ++e) plan.item_ids.data()[e] = 0;  // not to be read
  Guarded<int32_t> scratch(transpose_plan_scratch(plan.capacity, num_items));
  transpose_plan_cuda(plan.arrays(), {offsets.data(), groups.data(), entries.data(), num_items}, scratch.data(),
                      nullptr);
  expect(offsets.values() == expected_offsets, "item_offsets of a transposed plan");
  expect(groups.values() == expected_groups, "group_ids of a transposed plan");
  expect(entries.values() == expected_entries, "entry_ids of a transposed plan");
}

template <class Index>
void check_top_k(int64_t num_items, int64_t top_k, int64_t num_groups, std::mt19937& random) {
  const int64_t n = num_items * top_k;
  std::vector<Index> indices(n);
  // One in eight means no group; a few lie outside and count as none.
  for (Index& index : indices) {
    index = static_cast<Index>(random() % 8 ? random() % std::max<int64_t>(1, num_groups) : num_groups);
    if (random() % 64 == 0) index = random() % 2 ? static_cast<Index>(-3) : static_cast<Index>(num_groups + 5);
    if (num_groups == 0) index = 0;
  }
  if (sizeof(Index) == 8 && n > 2) {  // must not wrap to group 0
    indices[1] = static_cast<Index>(int64_t{1} << 32);
    indices[2] = static_cast<Index>(-(int64_t{1} << 32));
  }
  Guarded<Index> input(indices);
  PlanPair plan(num_groups, n);
  build_plan_reference(
      n, [&](int64_t p) { return p / top_k; },
      [&](int64_t p) -> int64_t { return indices[p] < 0 ? num_groups : static_cast<int64_t>(indices[p]); },
      plan.expected());
  Guarded<int32_t> scratch(plan_from_rows_scratch(n, num_groups, n));
  plan_from_top_k_cuda(input.data(), num_items, top_k, plan.arrays(), scratch.data(), nullptr);
  plan.check("a plan from top-k indices");
  check_transpose(plan, num_items);
}

void check_mask(int64_t num_items, int64_t num_groups, int64_t capacity, double density, std::mt19937& random) {
  const int64_t n = num_items * num_groups;
  Guarded<bool> mask(n);
  for (int64_t p = 0; p < n; ++p) mask.data()[p] = random() % 1000 < density * 1000;
  PlanPair plan(num_groups, capacity);
  build_plan_reference(
      n, [&](int64_t p) { return p / num_groups; },
      [&](int64_t p) { return mask.data()[p] ? p % num_groups : num_groups; }, plan.expected());
  Guarded<int32_t> scratch(plan_from_rows_scratch(n, num_groups, capacity));
  plan_from_mask_cuda(mask.data(), num_items, plan.arrays(), scratch.data(), nullptr);
  plan.check("a plan from a mask");
  check_transpose(plan, num_items);
}

void check_pairs(int64_t n, int64_t num_items, int64_t num_groups, std::mt19937& random) {
  Guarded<int32_t> items(n), groups(n);
  for (int64_t p = 0; p < n; ++p) {
    items.data()[p] = static_cast<int32_t>(random() % num_items);
    groups.data()[p] = static_cast<int32_t>(random() % 8 ? random() % num_groups : num_groups);
  }
  PlanPair plan(num_groups, n);
  build_plan_reference(
      n, [&](int64_t p) -> int64_t { return items.data()[p]; }, [&](int64_t p) -> int64_t { return groups.data()[p]; },
      plan.expected());
  Guarded<int32_t> scratch(plan_from_pairs_scratch(n, num_items, num_groups, n));
  plan_from_pairs_cuda(items.data(), groups.data(), n, num_items, plan.arrays(), scratch.data(), nullptr);
  plan.check("a plan from pairs");
  check_transpose(plan, num_items);
}

}  // namespace

int main() {
  for_each_schedule([] {
    std::mt19937 random(7);
    check_top_k<int64_t>(0, 2, 4, random);
    check_top_k<int64_t>(5, 0, 4, random);
    check_top_k<int32_t>(1, 8, 128, random);
    check_top_k<int64_t>(3, 2, 0, random);
    check_top_k<int64_t>(37, 3, 1, random);
    check_top_k<int32_t>(300, 2, 256, random);   // one tile, all digits
    check_top_k<int64_t>(700, 3, 60, random);    // two tiles
    check_top_k<int64_t>(1100, 2, 257, random);  // two passes over the group
    check_mask(0, 5, 0, 0.5, random);
    check_mask(33, 7, 33 * 7, 0.3, random);
    check_mask(40, 70, 40 * 70, 1, random);
    check_mask(40, 70, 100, 0.5, random);  // more pairs than places
    check_mask(9, 300, 50, 0.5, random);   // likewise over two passes
    check_mask(20, 6, 3000, 0.5, random);  // many more places than pairs
    check_mask(64, 40, 64 * 40, 0, random);
    check_pairs(0, 3, 3, random);
    check_pairs(500, 11, 5, random);        // equal pairs, one pass each
    check_pairs(2500, 400, 9, random);      // two passes over the item
    check_pairs(2100, 70000, 300, random);  // three over the item, two over the group
  });
  std::puts("plan: ok");
}
