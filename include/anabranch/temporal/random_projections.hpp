// Temporal random projections (TPNet, arXiv 2410.04013): a row per node and level whose products tell how two nodes
// are joined by walks that lose weight with age. What a batch of events does to them, and its plain-loop definition.
//
// A table row holds levels 0 .. L-1 of `dim` numbers, as they were at the node's last_time. At time `now`, which is no
// earlier than any event of the batch, level l has faded by fade^l with fade = exp(-decay * (now - last_time)). An
// event (u, v, t) adds exp(-decay * (now - t)) times level l-1 of v to level l of u, and the same with u and v
// exchanged, where level l-1 is the faded one of before the batch. Rows that no event names are not touched: they fade
// when they are read. Level 0 never changes.
//
// Layout: table [num_nodes, levels, dim], last_time [num_nodes] int64, now [1] int64, src, dst and time [events].
// Powers of fade are repeated products in double; numbers fade and are summed in accumulate_t<T>, an event's two ends
// after each other. Bytes: (L-1) * 2E rows of dim read, named rows read and written. FLOPs: 4 (L-1) 2E dim. Floor:
// bytes / bandwidth.
#pragma once

#include <cmath>
#include <vector>

#include "anabranch/temporal/ordered_scatter.hpp"

namespace anabranch {

template <class T>
struct RandomProjections {
  T* table;
  int64_t* last_time;
  const int64_t *now, *src, *dst, *time;
  double decay;
  int64_t num_nodes, levels, dim, events;

  /// The batch has two positions for each event: its source's, then its target's.
  ANABRANCH_HOST_DEVICE int64_t positions() const { return 2 * events; }
  /// The node that a position writes to; no_node where one of the event's ends is out of range.
  ANABRANCH_HOST_DEVICE int64_t node(int64_t position) const {
    const int64_t u = src[position / 2], v = dst[position / 2];
    const bool known = u >= 0 && u < num_nodes && v >= 0 && v < num_nodes;
    return !known ? no_node : position % 2 ? v : u;
  }
  /// The node that it reads from.
  ANABRANCH_HOST_DEVICE int64_t other(int64_t position) const {
    return position % 2 ? src[position / 2] : dst[position / 2];
  }
  ANABRANCH_HOST_DEVICE T* row(int64_t node, int64_t level) const { return table + (node * levels + level) * dim; }
  /// exp(-decay * (now - then)); 1 for what is not in the past.
  ANABRANCH_HOST_DEVICE double fade_since(int64_t then) const {
    const auto age = static_cast<uint64_t>(*now) - static_cast<uint64_t>(then);  // no overflow, whatever the times
    return then < *now ? exp(-decay * static_cast<double>(age)) : 1.0;
  }
  ANABRANCH_HOST_DEVICE static double power(double fade, int64_t level) {
    double product = 1;
    for (int64_t l = 0; l < level; ++l) product *= fade;
    return product;
  }
};

template <class T>
void random_projections_update_reference(const RandomProjections<T>& problem) {
  using Sum = accumulate_t<T>;
  const auto faded = [&](const std::vector<T>& table, int64_t node, int64_t level, int64_t c) {
    const double fade = problem.power(problem.fade_since(problem.last_time[node]), level);
    return detail::rounded_product(Sum(fade),
                                   static_cast<Sum>(table[(node * problem.levels + level) * problem.dim + c]));
  };
  const std::vector<T> before(problem.table, problem.table + problem.num_nodes * problem.levels * problem.dim);
  for (int64_t node = 0; node < problem.num_nodes; ++node) {
    bool named = false;
    for (int64_t p = 0; p < problem.positions(); ++p) named |= problem.node(p) == node;
    if (!named) continue;
    for (int64_t level = 1; level < problem.levels; ++level) {
      for (int64_t c = 0; c < problem.dim; ++c) {
        Sum sum = faded(before, node, level, c);
        for (int64_t p = 0; p < problem.positions(); ++p) {
          if (problem.node(p) != node) continue;
          const Sum weight = Sum(problem.fade_since(problem.time[p / 2]));
          sum += detail::rounded_product(weight, faded(before, problem.other(p), level - 1, c));
        }
        problem.row(node, level)[c] = T(sum);
      }
    }
  }
  for (int64_t p = 0; p < problem.positions(); ++p) {
    const int64_t node = problem.node(p);
    if (node != no_node && problem.last_time[node] < *problem.now) problem.last_time[node] = *problem.now;
  }
}

}  // namespace anabranch
