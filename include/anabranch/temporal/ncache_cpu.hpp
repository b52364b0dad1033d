// The N-cache's update (ncache.hpp defines it) on the CPU: each worker walks the whole batch and applies the positions
// whose owner is in its share, so a node sees its writes in order and nobody locks. The next rows are prefetched: a
// node's slots are some KB that nothing has touched lately.
#pragma once

#include <vector>

#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/ncache.hpp"

namespace anabranch {

/// ncache_update_reference, bit for bit.
template <class Bits>
NCacheStats ncache_update_cpu(const NCacheTable<Bits>& table, const NCachePolicy& policy,
                              const NCacheBatch<Bits>& batch) {
  const int64_t positions = 2 * batch.num_events, slots = table.layout.slots();
  const int num_workers = workers_for(positions, 128);
  std::vector<NCacheStats> stats(static_cast<size_t>(num_workers));
  parallel_workers(num_workers, [&](int worker) {
    const NodeShare share{worker, num_workers};
    NCacheStats own;
    for (int64_t position = 0; position < positions; ++position) {
      if (const int64_t ahead = position + 2; ahead < positions && share.owns(batch.owner(ahead))) {
        const int64_t* keys = table.keys + batch.owner(ahead) * slots;
        for (int64_t slot = 0; slot < slots; slot += 8) __builtin_prefetch(keys + slot, 1);
      }
      if (share.owns(batch.owner(position))) detail::ncache_apply(table, policy, batch, position, own);
    }
    stats[static_cast<size_t>(worker)] = own;
  });
  NCacheStats total;
  for (const NCacheStats& one : stats) {
    for (int hop = 0; hop < ncache_max_hops; ++hop) {
      total.offered[hop] += one.offered[hop];
      total.collisions[hop] += one.collisions[hop];
      total.replacements[hop] += one.replacements[hop];
    }
  }
  return total;
}

}  // namespace anabranch
