// The last k events of every node, exactly: rows of memory, what inserting and looking up mean, and plain loops for it.
//
// Layout: one int64 row a node: neighbors[c], times[c], event_ids[c], and how many events the node ever had; then up to
// whole lines of 64 bytes. Slots are sorted by (time, event id), the newest in slot c - 1; a slot without an entry is
// -1 in all three arrays and lies before those with one (a slot is empty where its neighbor is negative: times may be).
// So the last k are the ends of three arrays, and a lookup is three copies. Rows for snapshots have c = k. Causal rows,
// which also answer for the events before a time, have c = 2k.
//
// An entry goes behind those that do not come after it (equal ones stay in order of arrival), what is older moves down
// a slot, and the oldest is lost. In a causal row the oldest is slot 0, but slot c - k for an entry of the newest time
// when slot c - k has that time too: then k entries of this time are there, and the slots below are kept from them.
//
// What holds in causal rows after any sequence of inserts, in any order: of the node's newest time T the row has the
// last m = min(k, how many there were) events, and behind them, as the next entries downwards, the last k before T
// (all of them where there are fewer). So the last k slots with a time below t are exactly the last k events before t,
// for every t >= T. Proof, by the next entry, of time t:
//   t > T           Wanted now are this entry and the last k of all before it: k + 1 of the greatest, and the row keeps
//                   the c = 2k greatest of what it had and the entry.
//   t = T, m < k    Wanted are m + 1 and k: at most 2k, the greatest. The row keeps them.
//   t = T, m = k    Slots c - k .. c - 1 are those of time T. The least of the k + 1 is lost, nothing below them moves.
//   t < T           Wanted are m and k, the entry perhaps among them: at most 2k, the greatest. The row keeps them.
//
// Floor per edge of a stream with k = 10, inserts at both ends and three lookups: 3 * 256 bytes of rows read, 2 * 256
// of them written, and 720 bytes of results. At a million nodes that is the time of three random rows of four lines,
// two of which go back to memory.
#pragma once

#include "anabranch/temporal/events.hpp"

namespace anabranch {

/// Which rows an event src -> dst goes to: both, src's alone (it gets dst), or dst's alone (it gets src).
enum class EdgeDirection : int64_t { both, out, in };

struct RecentEntry {
  int64_t neighbor, time, event_id;
};

/// One node's words.
struct RecentRow {
  int64_t* words;
  int64_t capacity;

  ANABRANCH_HOST_DEVICE int64_t* neighbors() const { return words; }
  ANABRANCH_HOST_DEVICE int64_t* times() const { return words + capacity; }
  ANABRANCH_HOST_DEVICE int64_t* event_ids() const { return words + 2 * capacity; }
  ANABRANCH_HOST_DEVICE int64_t& num_events() const { return words[3 * capacity]; }

  ANABRANCH_HOST_DEVICE void set(int64_t slot, const RecentEntry& entry) const {
    neighbors()[slot] = entry.neighbor, times()[slot] = entry.time, event_ids()[slot] = entry.event_id;
  }
  ANABRANCH_HOST_DEVICE RecentEntry get(int64_t slot) const {
    return {neighbors()[slot], times()[slot], event_ids()[slot]};
  }
  /// Whether an entry belongs before what is in a slot.
  ANABRANCH_HOST_DEVICE bool is_before(const RecentEntry& entry, int64_t slot) const {
    return neighbors()[slot] >= 0 && comes_before(entry.time, entry.event_id, times()[slot], event_ids()[slot]);
  }
  /// Whether a slot has an entry that is not before a time.
  ANABRANCH_HOST_DEVICE bool is_hidden(int64_t time, int64_t slot) const {
    return neighbors()[slot] >= 0 && times()[slot] >= time;
  }
};

/// The rows of all nodes, and of what use they are.
struct RecentRows {
  int64_t* words;                  // [num_nodes, row_words()]
  int64_t num_nodes, k, capacity;  // capacity is k, or 2k for causal rows

  ANABRANCH_HOST_DEVICE static constexpr int64_t words_for(int64_t capacity) { return (3 * capacity + 1 + 7) / 8 * 8; }
  ANABRANCH_HOST_DEVICE int64_t row_words() const { return words_for(capacity); }
  ANABRANCH_HOST_DEVICE RecentRow row(int64_t node) const { return {words + node * row_words(), capacity}; }
  ANABRANCH_HOST_DEVICE bool has(int64_t node) const {
    return static_cast<uint64_t>(node) < static_cast<uint64_t>(num_nodes);
  }
  /// The slot that is lost to an entry of this time.
  ANABRANCH_HOST_DEVICE int64_t oldest_slot(const RecentRow& row, int64_t time) const {
    const int64_t* times = row.times();
    return time == times[capacity - k] && time == times[capacity - 1] ? capacity - k : 0;
  }
};

/// A batch of events src -> dst. Event i has the id event_id[i], or num_events[0] + i where event_id is null.
struct RecentEvents {
  const int64_t *src, *dst, *time, *event_id;  // [size]
  int64_t size;
  int64_t *latest,
      *num_events;  // [1] each: the newest time so far, and the number of events; both move on with a batch
  EdgeDirection direction;

  ANABRANCH_HOST_DEVICE int64_t id(int64_t i) const { return event_id ? event_id[i] : num_events[0] + i; }
  /// An event is at most two entries; a self-loop is one.
  ANABRANCH_HOST_DEVICE int sides() const { return direction == EdgeDirection::both ? 2 : 1; }
  /// The node that gets entry `side` of event i; no_node where there is no such entry.
  ANABRANCH_HOST_DEVICE int64_t node(int64_t i, int side) const {
    if (side == 1) return src[i] == dst[i] ? no_node : dst[i];
    return direction == EdgeDirection::in ? dst[i] : src[i];
  }
  ANABRANCH_HOST_DEVICE RecentEntry entry(int64_t i, int side) const {
    const bool is_of_src = side == 0 && direction != EdgeDirection::in;
    return {is_of_src ? dst[i] : src[i], time[i], id(i)};
  }
};

/// Where lookups go: the last k of each array, -1 in front where there are fewer.
struct RecentResults {
  int64_t *neighbors, *times, *event_ids;  // [queries, k]

  ANABRANCH_HOST_DEVICE void set(int64_t at, const RecentEntry& entry) const {
    neighbors[at] = entry.neighbor, times[at] = entry.time, event_ids[at] = entry.event_id;
  }
};

/// Nodes whose last k events are wanted; with times, those strictly before.
struct RecentQueries {
  const int64_t *nodes, *times;  // [size]; times may be null
  int64_t size;
};

ANABRANCH_HOST_DEVICE inline void recent_insert_reference(const RecentRows& rows, int64_t node,
                                                          const RecentEntry& entry) {
  const RecentRow row = rows.row(node);
  ++row.num_events();
  int64_t place = rows.capacity;
  while (place > 0 && row.is_before(entry, place - 1)) --place;
  const int64_t oldest = rows.oldest_slot(row, entry.time);
  if (place <= oldest) return;
  for (int64_t slot = oldest; slot + 1 < place; ++slot) row.set(slot, row.get(slot + 1));
  row.set(place - 1, entry);
}

/// Query `at` of the results: the last k events of the node, or those before *time.
ANABRANCH_HOST_DEVICE inline void recent_lookup_reference(const RecentRows& rows, int64_t node, const int64_t* time,
                                                          int64_t at, const RecentResults& results) {
  const RecentRow row = rows.row(node);
  int64_t end = rows.capacity;
  while (time && end > 0 && row.is_hidden(*time, end - 1)) --end;
  for (int64_t j = 0; j < rows.k; ++j) {
    const int64_t slot = end - rows.k + j;
    results.set(at * rows.k + j, slot < 0 ? RecentEntry{no_node, -1, no_event} : row.get(slot));
  }
}

/// Inserts a batch and looks up `per_event` nodes an event: as they were before the batch, or (causal) each as it is
/// just before its event, and only what is strictly before the event's time. All nodes must be in the rows.
ANABRANCH_HOST_DEVICE inline void recent_batch_reference(const RecentRows& rows, const RecentEvents& events,
                                                         const int64_t* queries, int64_t per_event, bool causal,
                                                         const RecentResults& results) {
  for (int64_t q = 0; !causal && q < events.size * per_event; ++q) {
    recent_lookup_reference(rows, queries[q], nullptr, q, results);
  }
  for (int64_t i = 0; i < events.size; ++i) {
    for (int64_t q = i * per_event; causal && q < (i + 1) * per_event; ++q) {
      recent_lookup_reference(rows, queries[q], events.time + i, q, results);
    }
    for (int side = 0; side < events.sides(); ++side) {
      if (events.node(i, side) != no_node) recent_insert_reference(rows, events.node(i, side), events.entry(i, side));
    }
    if (events.time[i] > events.latest[0]) events.latest[0] = events.time[i];
  }
  events.num_events[0] += events.size;
}

}  // namespace anabranch
