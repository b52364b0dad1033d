// Random projections (random_projections.hpp defines them) on the CPU. Level after level, the last one first: a level
// reads the one below, which nobody has written yet, so batch-start values need no copy. Within a level a worker takes
// whole nodes. Bytes: the definition's; exponentials are taken once a position, and cost about a row of 8 numbers each.
#pragma once

#include <algorithm>
#include <vector>

#include "anabranch/temporal/ordered_scatter_cpu.hpp"
#include "anabranch/temporal/random_projections.hpp"

namespace anabranch {

/// random_projections_update_reference, bit for bit.
template <class T>
void random_projections_update_cpu(const RandomProjections<T>& problem) {
  using Sum = accumulate_t<T>;
  constexpr int64_t block = 256, grain = 16384;
  const int64_t dim = problem.dim, positions = problem.positions();
  const NodeGroups groups(positions, [&](int64_t p) { return problem.node(p); });
  std::vector<double> fades(positions);  // of the node that a position reads from
  std::vector<Sum> weights(problem.events);
  parallel_for(problem.events, 512, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      if (problem.node(2 * e) == no_node) continue;
      weights[e] = Sum(problem.fade_since(problem.time[e]));
      for (int64_t p : {2 * e, 2 * e + 1}) fades[p] = problem.fade_since(problem.last_time[problem.other(p)]);
    }
  });
  for (int64_t level = problem.levels - 1; level >= 1; --level) {
    groups.parallel(dim, grain, [&](int64_t group) {
      const int64_t node = groups.node(group);
      if (level == problem.levels - 1 && group + 2 < groups.size()) {  // the passes after this one find rows in a cache
        const int64_t soon = groups.first(group + 2), row_bytes = problem.levels * dim * int64_t{sizeof(T)};
        for (const int64_t end : {problem.node(soon), problem.other(soon)}) {
          detail::prefetch_row(problem.row(end, 0), row_bytes);
        }
      }
      const Sum fade = Sum(problem.power(problem.fade_since(problem.last_time[node]), level));
      Sum sums[block];
      for (int64_t from = 0; from < dim; from += block) {
        const int64_t count = std::min(block, dim - from);
        T* __restrict row = problem.row(node, level) + from;
        for (int64_t c = 0; c < count; ++c) sums[c] = detail::rounded_product(fade, static_cast<Sum>(row[c]));
        groups.for_each(group, [&](int64_t p) {
          const T* __restrict other = problem.row(problem.other(p), level - 1) + from;
          const Sum weight = weights[p / 2], other_fade = Sum(problem.power(fades[p], level - 1));
          for (int64_t c = 0; c < count; ++c) {
            sums[c] += detail::rounded_product(weight, detail::rounded_product(other_fade, static_cast<Sum>(other[c])));
          }
        });
        for (int64_t c = 0; c < count; ++c) row[c] = T(sums[c]);
      }
    });
  }
  for (int64_t group = 0; group < groups.size(); ++group) {
    int64_t& last = problem.last_time[groups.node(group)];
    last = std::max(last, *problem.now);
  }
}

}  // namespace anabranch
