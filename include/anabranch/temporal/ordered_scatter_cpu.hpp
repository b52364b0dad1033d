// Ordered scatters (ordered_scatter.hpp defines them) on the CPU: the batch's positions are grouped by row, and a
// worker takes whole groups, so results do not depend on their number. A row's sum stays in the first cache, 256
// columns at a time; a row that is named once is added without one. Bytes: the definition's.
#pragma once

#include <algorithm>

#include "anabranch/temporal/node_groups_cpu.hpp"
#include "anabranch/temporal/ordered_scatter.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t scatter_grain = 32768;  // elements that are worth a worker

template <class T>
void add_group(const OrderedScatterAdd<T>& problem, const NodeGroups& groups, int64_t group, int64_t begin) {
  using Sum = sum_t<T>;
  constexpr int64_t block = 256;
  const int64_t width = problem.width, first = begin + groups.first(group);
  T* __restrict row = problem.table + groups.node(group) * width;
  const auto term = [](Sum weight, T value) { return rounded_product(weight, static_cast<Sum>(value)); };
  if (groups.is_single(group)) {
    const Sum weight = problem.weight(first);
    const T* __restrict values = problem.values + first * width;
    for (int64_t c = 0; c < width; ++c) row[c] = T(static_cast<Sum>(row[c]) + term(weight, values[c]));
    return;
  }
  Sum sums[block];
  for (int64_t from = 0; from < width; from += block) {
    const int64_t count = std::min(block, width - from);
    groups.for_each(group, [&](int64_t at) {
      const Sum weight = problem.weight(begin + at);
      const T* __restrict values = problem.values + (begin + at) * width + from;
      if (begin + at == first) {
        for (int64_t c = 0; c < count; ++c) sums[c] = term(weight, values[c]);
      } else {
        for (int64_t c = 0; c < count; ++c) sums[c] += term(weight, values[c]);
      }
    });
    for (int64_t c = 0; c < count; ++c) row[from + c] = T(static_cast<Sum>(row[from + c]) + sums[c]);
  }
}

}  // namespace detail

/// ordered_scatter_add_reference, bit for bit.
template <class T>
void ordered_scatter_add_cpu(const OrderedScatterAdd<T>& problem) {
  if (problem.width == 0) return;
  for (int64_t begin = 0; begin < problem.size; begin += ordered_scatter_stretch) {
    const int64_t size = std::min(ordered_scatter_stretch, problem.size - begin);
    const NodeGroups groups(size, [&](int64_t p) { return problem.row(begin + p); });
    groups.parallel(problem.width, detail::scatter_grain,
                    [&](int64_t group) { detail::add_group(problem, groups, group, begin); });
  }
}

/// ordered_scatter_reference.
inline void ordered_scatter_cpu(const OrderedScatter& problem) {
  if (problem.row_bytes == 0) return;
  const int num_workers = workers_for(problem.size * problem.row_bytes, 4 * detail::scatter_grain);
  parallel_workers(num_workers, [&](int worker) {
    const NodeShare share{worker, num_workers};
    for (int64_t p = 0; p < problem.size; ++p) {
      const int64_t row = problem.row(p);
      if (row == no_node || !share.owns(row)) continue;
      std::memcpy(static_cast<char*>(problem.table) + row * problem.row_bytes,
                  static_cast<const char*>(problem.values) + p * problem.row_bytes, problem.row_bytes);
    }
  });
}

/// latest_of_node_reference, in one pass.
inline void latest_of_node_cpu(const NodeEvents& events, bool* latest) {
  const NodeGroups groups(events.size, [&](int64_t p) { return events.nodes[p] < 0 ? no_node : events.nodes[p]; });
  std::fill(latest, latest + events.size, false);
  for (int64_t group = 0; group < groups.size(); ++group) {
    int64_t newest = groups.first(group);
    groups.for_each(group, [&](int64_t p) { newest = events.precedes(newest, p) ? p : newest; });
    latest[newest] = true;
  }
}

}  // namespace anabranch
