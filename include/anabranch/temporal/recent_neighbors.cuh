// The last k events of every node (recent_neighbors.hpp defines them) on the GPU, word for word as on the CPU.
//
// A lookup has a thread for every slot of every result: its three words come from rows in pieces of k words and are
// written in a row. Inserts, and lookups between them, are done by one warp for each node of the batch (node_warp.cuh),
// whose lanes move 32 slots of a row at a time; of a row that is written again and again the lines are in L1.
//
// Bytes for k = 10, in sectors of 32: an entry reads and writes a row of 256, a lookup reads 288 (three pieces of 80)
// and writes 240; finding a node's events costs n^2 / 64 loads of a warp for n positions of a launch, from L2. Floor:
// bytes / bandwidth for large lookups, a launch (some microseconds) for batches of a few thousand events.
//
// Nodes out of range: an event with one is as if it were not in the batch, and a lookup of one finds nothing.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/node_warp.cuh"
#include "anabranch/temporal/recent_neighbors.hpp"

namespace anabranch {

namespace detail {

inline constexpr unsigned kRecentThreads = 256, kRecentWarps = kRecentThreads / 32;

__device__ inline int64_t recent_thread() {
  return static_cast<int64_t>(blockIdx.x) * kRecentThreads + static_cast<int64_t>(threadIdx.x);
}

template <unsigned threads>
__global__ void __launch_bounds__(threads, 1)
    recent_clear_kernel(RecentRows rows, int64_t* latest, int64_t* num_events) {
  const int64_t at = recent_thread();
  if (at < rows.num_nodes * rows.row_words()) rows.words[at] = at % rows.row_words() == 3 * rows.capacity ? 0 : -1;
  if (at == 0) latest[0] = INT64_MIN, num_events[0] = 0;
}

/// Slot j of the result of query `at`; `time` is null for the last events of all. The node may be out of range.
__device__ inline void recent_lookup_slot(const RecentRows& rows, int64_t node, const int64_t* time, int64_t at,
                                          int64_t j, const RecentResults& results) {
  int64_t slot = -1, end = rows.capacity;
  const bool here = rows.has(node);
  const RecentRow row = rows.row(here ? node : 0);
  if (here) {
    while (time && end > 0 && row.is_hidden(*time, end - 1)) --end;
    slot = end - rows.k + j;
  }
  results.set(at * rows.k + j, slot < 0 ? RecentEntry{no_node, -1, no_event} : row.get(slot));
}

template <unsigned threads>
__global__ void __launch_bounds__(threads, 1)
    recent_lookup_kernel(RecentRows rows, RecentQueries queries, RecentResults results) {
  const int64_t thread = recent_thread(), at = thread / rows.k;
  if (at >= queries.size) return;
  recent_lookup_slot(rows, queries.nodes[at], queries.times ? queries.times + at : nullptr, at, thread % rows.k,
                     results);
}

/// recent_insert_reference by a warp: all lanes call it with the same arguments, and see the row afterwards.
__device__ inline void recent_insert_by_warp(const RecentRows& rows, const RecentRow& row, const RecentEntry& entry) {
  const int64_t lane = threadIdx.x % 32, oldest = rows.oldest_slot(row, entry.time);
  int64_t place = rows.capacity;
  if (row.is_before(entry, place - 1)) {
    for (int64_t base = 0; base < rows.capacity; base += 32) {
      const int64_t slot = base + lane;
      place -= __popc(__ballot_sync(kAllLanes, slot < rows.capacity && row.is_before(entry, slot)));
    }
  }
  if (lane == 0) ++row.num_events();
  if (place <= oldest) return;
  for (int64_t base = oldest; base + 1 < place; base += 32) {
    const int64_t slot = base + lane;
    const bool moves = slot + 1 < place;
    RecentEntry above{};
    if (moves) above = row.get(slot + 1);
    __syncwarp();  // all have read what others write over
    if (moves) row.set(slot, above);
  }
  __syncwarp();
  if (lane == 0) row.set(place - 1, entry);
  __syncwarp();
}

/// The positions of some events in a row: of each event first its queries (where there are lookups between inserts),
/// then its entries.
template <bool looks_up>
struct RecentWalk {
  RecentRows rows;
  RecentEvents events;
  const int64_t* queries;  // [events.size, per_event]
  int per_event;
  RecentResults results;
  int64_t first_event;  // of the launch; its positions begin at 0 and fit in 32 bits

  struct Position {
    int64_t event;
    int within;  // the query's number, or per_event and the entry's side
  };

  ANABRANCH_HOST_DEVICE int positions_per_event() const { return (looks_up ? per_event : 0) + events.sides(); }

  __device__ Position position(int64_t p) const {
    const auto at = static_cast<unsigned>(p), per = static_cast<unsigned>(positions_per_event());
    const unsigned event = looks_up ? at / per : at >> (per - 1);
    return {first_event + event, static_cast<int>(at - event * per)};
  }

  /// The node whose warp does this position; negative where there is nothing to do.
  __device__ int64_t node(int64_t p) const {
    const auto [event, within] = position(p);
    const int side = looks_up ? within - per_event : within;
    if (side < 0) return rows.has(query(event, within)) ? query(event, within) : no_node;
    return rows.has(events.src[event]) && rows.has(events.dst[event]) ? events.node(event, side) : no_node;
  }

  __device__ int64_t query(int64_t event, int which) const { return queries[event * per_event + which]; }

  __device__ void look_up(int64_t event, int which) const {
    for (int64_t j = threadIdx.x % 32; j < rows.k; j += 32) {
      recent_lookup_slot(rows, query(event, which), events.time + event, event * per_event + which, j, results);
    }
    __syncwarp();  // before anything is inserted
  }

  /// Position p of a node whose row this is, by a warp.
  __device__ void run(const RecentRow& row, int64_t p) const {
    const auto [event, within] = position(p);
    const int side = looks_up ? within - per_event : within;
    side < 0 ? look_up(event, within) : recent_insert_by_warp(rows, row, events.entry(event, side));
  }
};

template <bool looks_up>
__global__ void __launch_bounds__(kRecentThreads, 1) recent_walk_kernel(RecentWalk<looks_up> walk, int64_t positions) {
  const int64_t position = recent_thread() / 32;
  if (position >= positions) return;
  const int64_t node = walk.node(position);
  if (node < 0) {
    const auto [event, within] = walk.position(position);
    if (looks_up && within < walk.per_event) walk.look_up(event, within);
    return;
  }
  const auto node_at = [&](int64_t p) { return walk.node(p); };
  if (!is_first_of_node(node_at, 0, position, node)) return;
  const RecentRow row = walk.rows.row(node);
  for_each_of_node(node_at, position, positions, node, [&](int64_t p) { walk.run(row, p); });
}

/// One block, before all else: the newest time and the number of events move on, and events without ids get numbers.
/// Skipped events do neither, so those behind them are numbered as if they were not there.
template <unsigned threads>
__global__ void __launch_bounds__(threads, 1)
    recent_advance_kernel(RecentRows rows, RecentEvents events, int64_t* numbers) {
  SharedMemory shared;
  const auto newest_of_warp = shared.take<int64_t>(kRecentWarps);
  const auto taken_by_warp = shared.take<int>(kRecentWarps);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t newest = events.latest[0], next_number = events.num_events[0];
  for (int64_t base = 0; base < events.size; base += kRecentThreads) {
    const int64_t i = base + threadIdx.x;
    const bool taken = i < events.size && rows.has(events.src[i]) && rows.has(events.dst[i]);
    const unsigned taken_lanes = __ballot_sync(kAllLanes, taken);
    if (taken && events.time[i] > newest) newest = events.time[i];
    if (lane == 0) taken_by_warp[warp] = __popc(taken_lanes);
    __syncthreads();
    int64_t number = next_number + __popc(taken_lanes & ((1u << lane) - 1));
    for (unsigned other = 0; other < kRecentWarps; ++other) {
      if (other < warp) number += taken_by_warp[other];
      next_number += taken_by_warp[other];
    }
    if (taken && !events.event_id) numbers[i] = number;
    __syncthreads();  // all have read the counts that the next round writes over
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const int64_t other = __shfl_xor_sync(kAllLanes, newest, distance);
    if (other > newest) newest = other;
  }
  if (lane == 0) newest_of_warp[warp] = newest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned other = 1; other < kRecentWarps; ++other) {
    if (newest_of_warp[other] > newest) newest = newest_of_warp[other];
  }
  events.latest[0] = newest;
  events.num_events[0] = next_number;
}

inline unsigned recent_blocks(int64_t threads) { return grid_of((threads + kRecentThreads - 1) / kRecentThreads); }

/// Counts the events of a batch; the same events, all with ids. `numbers` [size] is for those of a batch without.
inline RecentEvents recent_advance_cuda(const RecentRows& rows, RecentEvents events, int64_t* numbers,
                                        cudaStream_t stream) {
  if (events.size > 0) {
    launch(recent_advance_kernel<kRecentThreads>, dim3(1), dim3(kRecentThreads),
           shared_bytes<int64_t, int>(kRecentWarps, kRecentWarps), stream, rows, events, numbers);
  }
  if (!events.event_id) events.event_id = numbers;
  return events;
}

/// In launches of `chunk` positions or one event.
template <bool looks_up>
void recent_walk_cuda(RecentWalk<looks_up> walk, int64_t chunk, cudaStream_t stream) {
  const int64_t per_event = walk.positions_per_event();
  const int64_t per_launch = per_event < chunk ? chunk / per_event : 1;
  for (walk.first_event = 0; walk.first_event < walk.events.size; walk.first_event += per_launch) {
    const int64_t left = walk.events.size - walk.first_event;
    const int64_t positions = (left < per_launch ? left : per_launch) * per_event;
    launch(recent_walk_kernel<looks_up>, dim3(recent_blocks(32 * positions)), dim3(kRecentThreads), 0, stream, walk,
           positions);
  }
}

}  // namespace detail

inline void recent_clear_cuda(const RecentRows& rows, int64_t* latest, int64_t* num_events, cudaStream_t stream) {
  const int64_t words = rows.num_nodes * rows.row_words();
  launch(detail::recent_clear_kernel<detail::kRecentThreads>, dim3(detail::recent_blocks(words > 0 ? words : 1)),
         dim3(detail::kRecentThreads), 0, stream, rows, latest, num_events);
}

inline void recent_lookup_cuda(const RecentRows& rows, const RecentQueries& queries, const RecentResults& results,
                               cudaStream_t stream) {
  if (queries.size == 0) return;
  launch(detail::recent_lookup_kernel<detail::kRecentThreads>, dim3(detail::recent_blocks(queries.size * rows.k)),
         dim3(detail::kRecentThreads), 0, stream, rows, queries, results);
}

/// `numbers`: memory for the numbers of events that come without ids, one for each; null where they have them.
inline void recent_insert_cuda(const RecentRows& rows, const RecentEvents& events, int64_t* numbers,
                               cudaStream_t stream) {
  const RecentEvents numbered = detail::recent_advance_cuda(rows, events, numbers, stream);
  detail::recent_walk_cuda(detail::RecentWalk<false>{rows, numbered, nullptr, 0, {}, 0}, node_warp_chunk, stream);
}

/// recent_batch_reference of the events that are not skipped.
inline void recent_batch_cuda(const RecentRows& rows, const RecentEvents& events, const int64_t* queries,
                              int64_t per_event, bool causal, const RecentResults& results, int64_t* numbers,
                              cudaStream_t stream) {
  if (causal && per_event > 0) {
    const RecentEvents numbered = detail::recent_advance_cuda(rows, events, numbers, stream);
    detail::recent_walk_cuda(detail::RecentWalk<true>{rows, numbered, queries, static_cast<int>(per_event), results, 0},
                             node_warp_chunk, stream);
    return;
  }
  recent_lookup_cuda(rows, {queries, nullptr, events.size * per_event}, results, stream);
  recent_insert_cuda(rows, events, numbers, stream);
}

}  // namespace anabranch
