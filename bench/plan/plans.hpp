// A plan to measure on: every row goes to `top_k` random groups.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "anabranch/plan/build_cpu.hpp"

namespace anabranch::bench {

struct TopKPlan {
  TopKPlan(int64_t rows_, int64_t groups_, int64_t top_k_)
      : rows(rows_),
        groups(groups_),
        top_k(top_k_),
        chosen(entries()),
        offsets(groups + 1),
        items(entries()),
        sources(entries()),
        item_offsets(rows + 1),
        group_ids(entries()),
        entry_ids(entries()) {
    std::mt19937 random(1);
    std::vector<int32_t> order(groups);
    for (int64_t g = 0; g < groups; ++g) order[g] = static_cast<int32_t>(g);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < top_k; ++k) {
        std::swap(order[k], order[k + static_cast<int64_t>(random() % (groups - k))]);
        chosen[row * top_k + k] = order[k];
      }
    }
    build();
    transpose();
  }

  int64_t entries() const { return rows * top_k; }
  PlanArrays arrays() { return {offsets.data(), items.data(), sources.data(), groups, entries()}; }
  void build() {
    build_plan_cpu(
        entries(), [this](int64_t pair) { return pair / top_k; },
        [this](int64_t pair) -> int64_t { return chosen[pair]; }, arrays());
  }
  void transpose() { transpose_plan_cpu(arrays(), {item_offsets.data(), group_ids.data(), entry_ids.data(), rows}); }
  /// Groups that have entries.
  int64_t touched() const {
    int64_t count = 0;
    for (int64_t g = 0; g < groups; ++g) count += offsets[g + 1] > offsets[g];
    return count;
  }

  int64_t rows, groups, top_k;
  std::vector<int32_t> chosen, offsets, items, sources, item_offsets, group_ids, entry_ids;
};

}  // namespace anabranch::bench
