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

/// The rows that a worker comes to soon; the next ones of a batch lie anywhere in a table.
inline void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < std::min<int64_t>(bytes, 2048); at += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + at, 1);
  }
}

template <class T>
void add_group(const OrderedScatterAdd<T>& problem, const NodeGroups& groups, int64_t group, int64_t begin) {
  using Sum = sum_t<T>;
  constexpr int64_t block = 256;
  const int64_t width = problem.width, first = begin + groups.first(group);
  T* __restrict row = problem.table + groups.node(group) * width;
  if (const int64_t soon = group + 4; soon < groups.size()) {
    prefetch_row(problem.table + groups.node(soon) * width, width * static_cast<int64_t>(sizeof(T)));
  }
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

/// Sums of integers do not depend on how they are taken: nothing is grouped, a worker adds to the rows it owns.
inline void add_integers(const OrderedScatterAdd<int64_t>& problem) {
  const int num_workers = workers_for(problem.size * problem.width, scatter_grain);
  parallel_workers(num_workers, [&](int worker) {
    const NodeShare share{worker, num_workers};
    for (int64_t p = 0; p < problem.size; ++p) {
      const int64_t row = problem.row(p), weight = problem.weight(p);
      if (row == no_node || !share.owns(row)) continue;
      for (int64_t c = 0; c < problem.width; ++c) {
        problem.table[row * problem.width + c] += weight * problem.values[p * problem.width + c];
      }
    }
  });
}

}  // namespace detail

/// ordered_scatter_add_reference, bit for bit.
template <class T>
void ordered_scatter_add_cpu(const OrderedScatterAdd<T>& problem, int64_t stretch = ordered_scatter_stretch) {
  if (problem.width == 0) return;
  if constexpr (std::is_same_v<T, int64_t>) return detail::add_integers(problem);
  for (int64_t begin = 0; begin < problem.size; begin += stretch) {
    const int64_t size = std::min(stretch, problem.size - begin);
    const NodeGroups groups(size, [&](int64_t p) { return problem.row(begin + p); });
    groups.parallel(problem.width, detail::scatter_grain,
                    [&](int64_t group) { detail::add_group(problem, groups, group, begin); });
  }
}

/// ordered_scatter_reference.
inline void ordered_scatter_cpu(const OrderedScatter& problem) {
  if (problem.row_bytes == 0) return;
  const int num_workers = workers_for(problem.size * problem.row_bytes, 4 * detail::scatter_grain);
  const auto row_at = [&](int64_t row) { return static_cast<char*>(problem.table) + row * problem.row_bytes; };
  parallel_workers(num_workers, [&](int worker) {
    const NodeShare share{worker, num_workers};
    for (int64_t p = 0; p < problem.size; ++p) {
      const int64_t row = problem.row(p);
      if (const int64_t soon = p + 4; soon < problem.size && problem.row(soon) != no_node) {
        detail::prefetch_row(row_at(problem.row(soon)), problem.row_bytes);
      }
      if (row == no_node || !share.owns(row)) continue;
      std::memcpy(row_at(row), static_cast<const char*>(problem.values) + p * problem.row_bytes, problem.row_bytes);
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
