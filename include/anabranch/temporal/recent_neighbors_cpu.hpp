// The last k events of every node (recent_neighbors.hpp defines them) on the CPU.
//
// Random rows are what costs: k = 10 takes four lines of 64 bytes, so rows are asked for some queries or events ahead,
// and memory of many rows wants huge pages. Loops over nodes are in recent_neighbors_kernels.hpp.
//
// Threads: lookups of a snapshot are shared out in a row; inserts, and lookups between them, by node (NodeShare), so
// every row sees its events in order. Floor: recent_neighbors.hpp.
#pragma once

#include <algorithm>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/recent_neighbors.hpp"

namespace anabranch {

struct RecentKernels {
  /// Queries [begin, end).
  void (*look_up)(const RecentRows& rows, const RecentQueries& queries, int64_t begin, int64_t end,
                  const RecentResults& results);
  /// What a share of the nodes gets from a batch of events, each after its `per_event` queries before its time.
  void (*run)(const RecentRows& rows, const RecentEvents& events, const int64_t* queries, int64_t per_event,
              const RecentResults& results, const NodeShare& share);
};

/// The kernels compiled for `isa`, for rows of `capacity` slots and lists of `k`.
template <CpuIsa isa>
RecentKernels recent_kernels_for(int64_t k, int64_t capacity);

extern template RecentKernels recent_kernels_for<CpuIsa::portable>(int64_t k, int64_t capacity);
#if defined(__x86_64__)
extern template RecentKernels recent_kernels_for<CpuIsa::avx2>(int64_t k, int64_t capacity);
extern template RecentKernels recent_kernels_for<CpuIsa::avx512>(int64_t k, int64_t capacity);
#endif

inline RecentKernels recent_kernels(const RecentRows& rows) {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return recent_kernels_for<CpuIsa::avx512>(rows.k, rows.capacity);
  if (cpu_isa() >= CpuIsa::avx2) return recent_kernels_for<CpuIsa::avx2>(rows.k, rows.capacity);
#endif
  return recent_kernels_for<CpuIsa::portable>(rows.k, rows.capacity);
}

namespace detail {

/// Workers for so many rows of a use: each should move a good many words, or wait for as long as that takes.
inline int recent_workers(const RecentRows& rows, int64_t uses) {
  return workers_for(uses * (rows.row_words() + 16), 32768);
}

inline void recent_run(const RecentRows& rows, const RecentEvents& events, const int64_t* queries, int64_t per_event,
                       const RecentResults& results) {
  const RecentKernels kernels = recent_kernels(rows);
  const int num_workers = recent_workers(rows, events.size * (per_event + events.sides()));
  parallel_workers(num_workers,
                   [&](int worker) { kernels.run(rows, events, queries, per_event, results, {worker, num_workers}); });
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

/// recent_lookup_reference for every query.
inline void recent_lookup_cpu(const RecentRows& rows, const RecentQueries& queries, const RecentResults& results) {
  const RecentKernels kernels = recent_kernels(rows);
  const int num_workers = detail::recent_workers(rows, queries.size);
  parallel_workers(num_workers, [&](int worker) {
    kernels.look_up(rows, queries, queries.size * worker / num_workers, queries.size * (worker + 1) / num_workers,
                    results);
  });
}

inline void recent_insert_cpu(const RecentRows& rows, const RecentEvents& events) {
  detail::recent_run(rows, events, nullptr, 0, {});
}

/// recent_batch_reference.
inline void recent_batch_cpu(const RecentRows& rows, const RecentEvents& events, const int64_t* queries,
                             int64_t per_event, bool causal, const RecentResults& results) {
  if (causal) return detail::recent_run(rows, events, queries, per_event, results);
  recent_lookup_cpu(rows, {queries, nullptr, events.size * per_event}, results);
  recent_insert_cpu(rows, events);
}

}  // namespace anabranch
