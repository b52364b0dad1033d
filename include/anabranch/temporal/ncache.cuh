// The N-cache's update (ncache.hpp defines it) on the GPU: a warp for each node that the batch names, walking the
// node's positions in order (node_warp.cuh). A slot of hop 1 and 2 belongs to one lane for the whole walk, so lanes
// need no synchronisation: hop 2's lane goes through the offers in slot order and keeps the slot's key in a register,
// while every lane hashes the offer of its own number for all.
//
// Bytes: the definition's, from L2, and 8 per position and node for finding each other. Rounds of a warp per position:
// M1 ceil(M2 / 32). One launch for each 8192 events.
#pragma once

#include <algorithm>

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/ncache.hpp"
#include "anabranch/temporal/node_warp.cuh"

namespace anabranch {

namespace detail {

inline constexpr int kNCacheWarps = 4;  // in a block

/// The writes of one lane of a warp.
template <class Bits>
struct NCacheLane {
  const NCacheTable<Bits>& table;
  const NCachePolicy& policy;
  const NCacheBatch<Bits>& batch;
  int lane;
  unsigned long long counts[3 * ncache_max_hops] = {};

  /// Whether the offer of `key` gets the slot that holds `held`.
  __device__ bool takes(int hop, int64_t held, int64_t key, bool replaces) {
    if (held < 0 || held == key) return true;
    ++counts[3 * hop + 1];
    counts[3 * hop + 2] += replaces;
    return replaces;
  }

  __device__ bool skips(int64_t position) const {
    return !table.has(batch.owner(position ^ 1)) || batch.event_id[position / 2] < 0;
  }

  /// Hop 2 of the position's owner. All lanes call it.
  __device__ void write_hop2(int64_t position) {
    const NCacheLayout& layout = table.layout;
    const int64_t owner = batch.owner(position), other_row = batch.row(position ^ 1);
    const uint64_t slots = policy.slot_chain(2);
    const uint64_t draws = policy.draw_chain(batch.event_id[position / 2], owner, 2);
    for (int64_t target_base = 0; target_base < layout.length[2]; target_base += 32) {
      const int64_t target = target_base + lane;
      const bool mine = target < layout.length[2];
      const int64_t at = owner * layout.slots() + layout.first[2] + target;
      int64_t held = mine ? table.keys[at] : no_node, winner = -1;
      for (int64_t base = 0; base < layout.length[1]; base += 32) {
        const int64_t offer = base + lane;
        const int64_t row_at = other_row * layout.slots() + 1 + offer;
        int64_t key = offer < layout.length[1] ? batch.row_keys[row_at] : no_node;
        if (!table.has(key) || batch.row_event_ids[row_at] < 0) key = no_node;
        const int64_t slot = key < 0 ? -1 : policy.slot_of(slots, layout.length[2], key);
        const int replaces = key >= 0 && policy.replaces(draws, key);
        if (target_base == 0) counts[6] += key >= 0;
        unsigned offers = __ballot_sync(kAllLanes, key >= 0);
        while (offers != 0) {
          const int from = __ffs(static_cast<int>(offers)) - 1;
          offers &= offers - 1;
          const int64_t its_key = __shfl_sync(kAllLanes, key, from), its_slot = __shfl_sync(kAllLanes, slot, from);
          const int its_replaces = __shfl_sync(kAllLanes, replaces, from);
          if (mine && its_slot == target && takes(2, held, its_key, its_replaces != 0)) {
            held = its_key, winner = base + from;
          }
        }
      }
      if (winner >= 0) ncache_store(table, at, ncache_row_entry(table, batch, other_row, 1 + winner));
    }
  }

  /// Hops 1 and 0 of the position's owner: one lane each.
  __device__ void write_hop1_and_0(int64_t position) {
    const NCacheLayout& layout = table.layout;
    const int64_t owner = batch.owner(position), other = batch.owner(position ^ 1);
    const int64_t row = owner * layout.slots();
    const int64_t slot = policy.slot_of(policy.slot_chain(1), layout.length[1], other);
    if (slot % 32 == lane) {
      const int64_t at = row + 1 + slot;
      ++counts[3];
      const uint64_t draws = policy.draw_chain(batch.event_id[position / 2], owner, 1);
      if (takes(1, table.keys[at], other, policy.replaces(draws, other))) {
        ncache_store(table, at, ncache_hop1_entry(table, batch, position, other, 1 + slot));
      }
    }
    if (lane == 0) {
      ++counts[0];
      ncache_store(table, row, ncache_hop0_entry(table, batch, position));
    }
  }
};

template <class Bits>
__global__ void __launch_bounds__(32 * kNCacheWarps, 1)
    ncache_update_kernel(NCacheTable<Bits> table, NCachePolicy policy, NCacheBatch<Bits> batch, int64_t begin,
                         int64_t end, unsigned long long* stats) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t position = begin + static_cast<int64_t>(blockIdx.x) * kNCacheWarps + threadIdx.x / 32;
  if (position >= end) return;
  const int64_t node = batch.owner(position);
  const auto node_at = [&](int64_t p) { return batch.owner(p); };
  if (!table.has(node) || !is_first_of_node(node_at, begin, position, node)) return;
  NCacheLane<Bits> mine{table, policy, batch, lane};
  for_each_of_node(node_at, position, end, node, [&](int64_t p) {
    if (mine.skips(p)) return;
    if (table.layout.num_hops > 2) mine.write_hop2(p);
    mine.write_hop1_and_0(p);
  });
#pragma unroll
  for (int i = 0; i < 3 * ncache_max_hops; ++i) {
    const unsigned long long count = warp_sum(mine.counts[i]);
    if (lane == 0 && count > 0) atomicAdd(stats + i, count);
  }
}

}  // namespace detail

/// ncache_update_reference, bit for bit, but that events which name no node of the cache, or have a negative id, are
/// passed over. Adds to stats [3, 3]: per hop what is offered, collides and replaces. A launch
/// takes `chunk` positions, two an event.
template <class Bits>
void ncache_update_cuda(const NCacheTable<Bits>& table, const NCachePolicy& policy, const NCacheBatch<Bits>& batch,
                        unsigned long long* stats, cudaStream_t stream, int64_t chunk = node_warp_chunk) {
  const int64_t positions = 2 * batch.num_events;
  for (int64_t begin = 0; begin < positions; begin += chunk) {
    const int64_t end = std::min(begin + chunk, positions);
    const unsigned blocks = grid_of((end - begin + detail::kNCacheWarps - 1) / detail::kNCacheWarps);
    launch(detail::ncache_update_kernel<Bits>, dim3(blocks), dim3(32 * detail::kNCacheWarps), 0, stream, table, policy,
           batch, begin, end, stats);
  }
}

}  // namespace anabranch
