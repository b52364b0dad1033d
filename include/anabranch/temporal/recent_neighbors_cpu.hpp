// The last k events of every node (recent_neighbors.hpp defines them) on the CPU.
//
// Random rows are what costs: k = 10 takes four lines of 64 bytes, so rows are asked for some queries or events ahead.
// An entry that is the newest, as nearly all are, moves the whole row down by one word: the three arrays lie behind
// one another, and the word that crosses from one into the next is then written over.
//
// Threads: lookups of a snapshot are shared out in a row; inserts, and lookups between them, by node (NodeShare), so
// every row sees its events in order. Floor: recent_neighbors.hpp.
#pragma once

#include <algorithm>

#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/recent_neighbors.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t recent_prefetched_queries = 12;
inline constexpr int64_t recent_prefetched_events = 6;

/// Asks for the lines of a row, to be read or also written.
template <bool writes>
void prefetch_row(const RecentRows& rows, int64_t node) {
  const int64_t* words = rows.row(node).words;
  for (int64_t at = 0; at < rows.row_words(); at += 8) __builtin_prefetch(words + at, writes, 3);
}

inline void recent_insert(const RecentRows& rows, int64_t node, const RecentEntry& entry) {
  const int64_t c = rows.capacity;
  const RecentRow row = rows.row(node);
  if (comes_before(entry.time, entry.event_id, row.times()[c - 1], row.event_ids()[c - 1]) ||
      rows.oldest_slot(row, entry.time) != 0) [[unlikely]] {
    return recent_insert_reference(rows, node, entry);
  }
  int64_t* words = row.words;
  for (int64_t at = 0; at + 1 < 3 * c; ++at) words[at] = words[at + 1];
  words[c - 1] = entry.neighbor;
  words[2 * c - 1] = entry.time;
  words[3 * c - 1] = entry.event_id;
  ++words[3 * c];
}

inline void recent_lookup(const RecentRows& rows, int64_t node, const int64_t* time, int64_t at,
                          const RecentResults& results) {
  const int64_t k = rows.k, c = rows.capacity;
  const RecentRow row = rows.row(node);
  int64_t end = c;
  while (time && end > 0 && row.is_hidden(*time, end - 1)) --end;
  if (end < k) [[unlikely]]
    return recent_lookup_reference(rows, node, time, at, results);
  const int64_t* from = row.words + end - k;
  int64_t *neighbors = results.neighbors + at * k, *times = results.times + at * k, *ids = results.event_ids + at * k;
  for (int64_t j = 0; j < k; ++j) neighbors[j] = from[j];
  for (int64_t j = 0; j < k; ++j) times[j] = from[c + j];
  for (int64_t j = 0; j < k; ++j) ids[j] = from[2 * c + j];
}

/// The entries of event i for the nodes of a share.
inline void recent_insert_event(const RecentRows& rows, const RecentEvents& events, int64_t i, const NodeShare& share) {
  for (int side = 0; side < events.sides(); ++side) {
    const int64_t node = events.node(i, side);
    if (node != no_node && share.owns(node)) recent_insert(rows, node, events.entry(i, side));
  }
}

inline void recent_prefetch_event(const RecentRows& rows, const RecentEvents& events, int64_t i,
                                  const NodeShare& share) {
  if (i >= events.size) return;
  for (int side = 0; side < events.sides(); ++side) {
    const int64_t node = events.node(i, side);
    if (node != no_node && share.owns(node)) prefetch_row<true>(rows, node);
  }
}

/// The batch is in: the newest time and the number of events move on.
inline void recent_advance(const RecentEvents& events) {
  int64_t latest = events.latest[0];
  for (int64_t i = 0; i < events.size; ++i) latest = std::max(latest, events.time[i]);
  events.latest[0] = latest;
  events.num_events[0] += events.size;
}

}  // namespace detail

/// No events, in any memory.
inline void recent_clear_cpu(const RecentRows& rows, int64_t* latest, int64_t* num_events) {
  parallel_for(rows.num_nodes, std::max<int64_t>(1, 65536 / rows.row_words()), [&](int64_t begin, int64_t end) {
    std::fill(rows.row(begin).words, rows.row(end).words, -1);
    for (int64_t node = begin; node < end; ++node) rows.row(node).num_events() = 0;
  });
  latest[0] = INT64_MIN;
  num_events[0] = 0;
}

inline void recent_lookup_cpu(const RecentRows& rows, const RecentQueries& queries, const RecentResults& results) {
  const int64_t cost = 3 * rows.k + 16;  // words a lookup moves, and as much as a row's way from memory
  parallel_for(queries.size, 32768 / cost + 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t ahead = detail::recent_prefetched_queries;
    for (int64_t q = begin; q < std::min(begin + ahead, end); ++q) detail::prefetch_row<false>(rows, queries.nodes[q]);
    for (int64_t q = begin; q < end; ++q) {
      if (q + ahead < end) detail::prefetch_row<false>(rows, queries.nodes[q + ahead]);
      detail::recent_lookup(rows, queries.nodes[q], queries.times ? queries.times + q : nullptr, q, results);
    }
  });
}

inline void recent_insert_cpu(const RecentRows& rows, const RecentEvents& events) {
  const int num_workers = workers_for(events.size * events.sides() * (3 * rows.capacity + 16), 32768);
  parallel_workers(num_workers, [&](int worker) {
    constexpr int64_t ahead = detail::recent_prefetched_events;
    const NodeShare share{worker, num_workers};
    for (int64_t i = 0; i < ahead; ++i) detail::recent_prefetch_event(rows, events, i, share);
    for (int64_t i = 0; i < events.size; ++i) {
      detail::recent_prefetch_event(rows, events, i + ahead, share);
      detail::recent_insert_event(rows, events, i, share);
    }
  });
  detail::recent_advance(events);
}

/// recent_batch_reference.
inline void recent_batch_cpu(const RecentRows& rows, const RecentEvents& events, const int64_t* queries,
                             int64_t per_event, bool causal, const RecentResults& results) {
  if (!causal) {
    recent_lookup_cpu(rows, {queries, nullptr, events.size * per_event}, results);
    return recent_insert_cpu(rows, events);
  }
  const int64_t cost = (per_event + events.sides()) * (3 * rows.capacity + 16);
  const int num_workers = workers_for(events.size * cost, 32768);
  parallel_workers(num_workers, [&](int worker) {
    constexpr int64_t ahead = detail::recent_prefetched_events;
    const NodeShare share{worker, num_workers};
    const auto prefetch = [&](int64_t i) {
      detail::recent_prefetch_event(rows, events, i, share);
      for (int64_t q = i * per_event; q < std::min(i + 1, events.size) * per_event; ++q) {
        if (share.owns(queries[q])) detail::prefetch_row<false>(rows, queries[q]);
      }
    };
    for (int64_t i = 0; i < ahead; ++i) prefetch(i);
    for (int64_t i = 0; i < events.size; ++i) {
      prefetch(i + ahead);
      for (int64_t q = i * per_event; q < (i + 1) * per_event; ++q) {
        if (share.owns(queries[q])) detail::recent_lookup(rows, queries[q], events.time + i, q, results);
      }
      detail::recent_insert_event(rows, events, i, share);
    }
  });
  detail::recent_advance(events);
}

}  // namespace anabranch
