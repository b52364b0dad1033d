// The N-cache of NAT (arXiv 2209.01084): per node a few hashed slots of neighbours for each hop, and the rule by which
// a batch of events writes to them, with its plain-loop definition.
//
// Layout: a node has S = 1 + M1 (+ M2) slots: one of hop 0 (the node itself), M1 of hop 1, M2 of hop 2. Three int64
// tables [N, S] (key = neighbour, event id, time; -1 where empty) and states [N, S, F]. Key q lies in one slot of a hop
// if anywhere, a full-avalanche hash: every slot is reachable for every seed.
//
// A write (owner, hop, key, event, time, state) goes in if its slot is empty, holds the same key, or the draw of
// (seed, event, owner, hop, key) is below the replace probability. Writes are applied one by one: events in the order
// of the batch, which is that of (time, event id); within an event src's writes, then dst's; of one node those of hop 2
// in the slot order of the row they come from, then hop 1, then hop 0. What is written comes from `rows`, the slots of
// all sources and then of all destinations as they were read before the batch, states already brought up to date:
//   hop 2 of u: every occupied hop-1 slot of v's row;
//   hop 1 of u: (v, event, time), with the state that u's row has for v, zeros where it has none;
//   hop 0 of u: (u, event, time), with the state of hop 0 of u's row.
//
// Bytes per event: 2 (M1 (24 + F states) read, as much written where it goes in, and the two other slots). Work: for
// each offer a hash for its slot, and one for its draw where the slot is another's: about 1 us a node and event for
// M1 = 32 on one core, half of it the slots' cache lines.
#pragma once

#include "anabranch/temporal/events.hpp"

namespace anabranch {

inline constexpr int ncache_max_hops = 3;  // 0, 1 and 2

/// Where the slots of each hop are within a node's row. num_hops counts hop 0: 2 or 3.
struct NCacheLayout {
  int num_hops;
  int64_t length[ncache_max_hops];
  int64_t first[ncache_max_hops];

  static NCacheLayout of(int64_t hop1, int64_t hop2) { return {hop2 > 0 ? 3 : 2, {1, hop1, hop2}, {0, 1, 1 + hop1}}; }
  ANABRANCH_HOST_DEVICE int64_t slots() const { return first[2] + length[2]; }
};

struct NCachePolicy {
  uint64_t seed;
  float replace_probability;

  /// What the slots of all keys of a hop have in common, and the draws of all keys of an event, owner and hop.
  ANABRANCH_HOST_DEVICE uint64_t slot_chain(int hop) const { return chained_hash(seed, static_cast<uint64_t>(hop)); }
  ANABRANCH_HOST_DEVICE uint64_t draw_chain(int64_t event, int64_t owner, int hop) const {
    const uint64_t chain = chained_hash(seed, static_cast<uint64_t>(event));
    return chained_hash(chained_hash(chain, static_cast<uint64_t>(owner)), static_cast<uint64_t>(hop));
  }
  /// The slot of a key within a hop of `length` slots.
  ANABRANCH_HOST_DEVICE static int64_t slot_of(uint64_t slot_chain, int64_t length, int64_t key) {
    return below(chained_hash(slot_chain, static_cast<uint64_t>(key)), length);
  }
  /// Whether a write may take a slot from another key.
  ANABRANCH_HOST_DEVICE bool replaces(uint64_t draw_chain, int64_t key) const {
    return unit_interval(chained_hash(draw_chain, static_cast<uint64_t>(key))) < replace_probability;
  }
};

/// States are only copied, so their type is an unsigned integer of their size; zero is no bit.
template <class Bits>
struct NCacheTable {
  int64_t *keys, *event_ids, *times;
  Bits* states;
  int64_t num_nodes, state_size;
  NCacheLayout layout;

  ANABRANCH_HOST_DEVICE bool has(int64_t node) const { return node >= 0 && node < num_nodes; }
};

template <class Bits>
struct NCacheBatch {
  const int64_t *src, *dst, *time, *event_id;
  int64_t num_events;
  // Rows [2 num_events, S]: those of src, then those of dst.
  const int64_t *row_keys, *row_event_ids, *row_times;
  const Bits* row_states;

  /// Position 2 e is the source of event e, 2 e + 1 its destination: the order of writes.
  ANABRANCH_HOST_DEVICE int64_t owner(int64_t position) const {
    return position % 2 ? dst[position / 2] : src[position / 2];
  }
  ANABRANCH_HOST_DEVICE int64_t row(int64_t position) const { return position % 2 * num_events + position / 2; }
};

/// Per hop: writes offered, those whose slot held another key, and those of them that replaced it.
struct NCacheStats {
  int64_t offered[ncache_max_hops] = {}, collisions[ncache_max_hops] = {}, replacements[ncache_max_hops] = {};
};

namespace detail {

/// What the batch writes to one slot if the write goes in; states null for zeros.
template <class Bits>
struct NCacheEntry {
  int64_t key, event_id, time;
  const Bits* state;
};

template <class Bits>
ANABRANCH_HOST_DEVICE inline void ncache_store(const NCacheTable<Bits>& table, int64_t at,
                                               const NCacheEntry<Bits>& entry) {
  table.keys[at] = entry.key;
  table.event_ids[at] = entry.event_id;
  table.times[at] = entry.time;
  for (int64_t f = 0; f < table.state_size; ++f) {
    table.states[at * table.state_size + f] = entry.state ? entry.state[f] : Bits(0);
  }
}

/// Slot `slot` of a row as an entry.
template <class Bits>
ANABRANCH_HOST_DEVICE inline NCacheEntry<Bits> ncache_row_entry(const NCacheTable<Bits>& table,
                                                                const NCacheBatch<Bits>& batch, int64_t row,
                                                                int64_t slot) {
  const int64_t at = row * table.layout.slots() + slot;
  return {batch.row_keys[at], batch.row_event_ids[at], batch.row_times[at], batch.row_states + at * table.state_size};
}

/// What hop 1 of the position's owner is offered: the other node, in its slot `slot` of the row.
template <class Bits>
ANABRANCH_HOST_DEVICE inline NCacheEntry<Bits> ncache_hop1_entry(const NCacheTable<Bits>& table,
                                                                 const NCacheBatch<Bits>& batch, int64_t position,
                                                                 int64_t other, int64_t slot) {
  const NCacheEntry<Bits> held = ncache_row_entry(table, batch, batch.row(position), slot);
  const int64_t e = position / 2;
  return {other, batch.event_id[e], batch.time[e], held.key == other ? held.state : nullptr};
}

template <class Bits>
ANABRANCH_HOST_DEVICE inline NCacheEntry<Bits> ncache_hop0_entry(const NCacheTable<Bits>& table,
                                                                 const NCacheBatch<Bits>& batch, int64_t position) {
  const int64_t e = position / 2;
  return {batch.owner(position), batch.event_id[e], batch.time[e],
          ncache_row_entry(table, batch, batch.row(position), 0).state};
}

/// The writes of one position, in order.
template <class Bits>
void ncache_apply(const NCacheTable<Bits>& table, const NCachePolicy& policy, const NCacheBatch<Bits>& batch,
                  int64_t position, NCacheStats& stats) {
  const NCacheLayout& layout = table.layout;
  const int64_t owner = batch.owner(position), other = batch.owner(position ^ 1);
  const int64_t event = batch.event_id[position / 2];
  const auto write = [&](int hop, uint64_t draws, int64_t slot, const NCacheEntry<Bits>& entry) {
    const int64_t at = owner * layout.slots() + layout.first[hop] + slot;
    const int64_t held = table.keys[at];
    ++stats.offered[hop];
    if (held >= 0 && held != entry.key) {
      ++stats.collisions[hop];
      if (!policy.replaces(draws, entry.key)) return;
      ++stats.replacements[hop];
    }
    ncache_store(table, at, entry);
  };
  if (layout.num_hops > 2) {
    const int64_t other_row = batch.row(position ^ 1);
    const uint64_t slots = policy.slot_chain(2), draws = policy.draw_chain(event, owner, 2);
    for (int64_t slot = 1; slot <= layout.length[1]; ++slot) {
      const NCacheEntry<Bits> entry = ncache_row_entry(table, batch, other_row, slot);
      if (entry.key >= 0) write(2, draws, policy.slot_of(slots, layout.length[2], entry.key), entry);
    }
  }
  const int64_t slot = policy.slot_of(policy.slot_chain(1), layout.length[1], other);
  write(1, policy.draw_chain(event, owner, 1), slot, ncache_hop1_entry(table, batch, position, other, 1 + slot));
  write(0, 0, 0, ncache_hop0_entry(table, batch, position));
}

}  // namespace detail

/// The definition. Nodes, keys of rows and event ids must be in range.
template <class Bits>
NCacheStats ncache_update_reference(const NCacheTable<Bits>& table, const NCachePolicy& policy,
                                    const NCacheBatch<Bits>& batch) {
  NCacheStats stats;
  for (int64_t position = 0; position < 2 * batch.num_events; ++position) {
    detail::ncache_apply(table, policy, batch, position, stats);
  }
  return stats;
}

}  // namespace anabranch
