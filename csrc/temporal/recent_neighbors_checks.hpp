// The arguments of the recent_neighbors ops, on every device: the three tensors of state, a batch of events, queries.
#pragma once

#include <tuple>
#include <utility>

#include "anabranch/temporal/recent_neighbors.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {

struct RecentArguments {
  const char* op;
  Tensor rows;
  int64_t k, capacity;

  RecentArguments(const char* op, const Tensor& rows, int64_t k, int64_t capacity)
      : op(op), rows(rows), k(k), capacity(capacity) {
    check(k >= 1 && k <= int64_t{1} << 20, op, ": k is ", k, ", must be 1 to 2^20; give the length of a list");
    check(capacity == k || capacity == 2 * k, op, ": capacity is ", capacity, ", must be k=", k, " or 2k=", 2 * k,
          "; give the slots of a row");
    check_dtype(op, "rows", rows, ScalarType::Long);
    check_dim(op, "rows", rows, 2);
    check(rows.size(1) == RecentRows::words_for(capacity), op, ": rows has shape ", shape_string(rows),
          ", must be (num_nodes, ", RecentRows::words_for(capacity), ") for ", capacity,
          " slots; pass the rows that were made for it");
    check(rows.is_contiguous(), op, ": rows is not contiguous, must be; pass the tensor that was made for it");
  }

  RecentRows problem() const { return {mutable_data<int64_t>(rows), rows.size(0), k, capacity}; }

  void check_on_device(const char* name, const Tensor& tensor) const {
    check_same_device(op, name, tensor, "rows", rows);
    check_dtype(op, name, tensor, ScalarType::Long);
  }

  void check_counter(const char* name, const Tensor& tensor) const {
    check_on_device(name, tensor);
    check(tensor.dim() == 1 && tensor.size(0) == 1, op, ": ", name, " has shape ", shape_string(tensor),
          ", must be (1,); pass the tensor that was made for it");
  }

  /// One row-major block of the numbers of a batch; of any length where `size` is negative.
  Tensor vector(const char* name, const Tensor& given, const char* like = nullptr, int64_t size = -1) const {
    check_on_device(name, given);
    check(given.dim() == 1, op, ": ", name, " has shape ", shape_string(given), ", must be (n,); flatten it");
    check(size < 0 || given.size(0) == size, op, ": ", name, " has shape ", shape_string(given), ", must be (", size,
          ",) like ", like, "; give each its own");
    return as_contiguous(given);
  }

  /// Where n lookups go, or per_event of each of n events.
  std::tuple<Tensor, Tensor, Tensor> results(int64_t n) const {
    const std::initializer_list<int64_t> shape{n, k};
    return {empty_on(rows, shape, ScalarType::Long), empty_on(rows, shape, ScalarType::Long),
            empty_on(rows, shape, ScalarType::Long)};
  }
  std::tuple<Tensor, Tensor, Tensor> results(int64_t n, int64_t per_event) const {
    const std::initializer_list<int64_t> shape{n, per_event, k};
    return {empty_on(rows, shape, ScalarType::Long), empty_on(rows, shape, ScalarType::Long),
            empty_on(rows, shape, ScalarType::Long)};
  }
  static RecentResults pointers(const std::tuple<Tensor, Tensor, Tensor>& results) {
    const auto& [neighbors, times, event_ids] = results;
    return {mutable_data<int64_t>(neighbors), mutable_data<int64_t>(times), mutable_data<int64_t>(event_ids)};
  }
};

/// The whole state, of any content.
struct RecentClearArguments : RecentArguments {
  RecentClearArguments(const Tensor& rows_in, const Tensor& latest, const Tensor& num_events, int64_t capacity)
      : RecentArguments("recent_neighbors_clear", rows_in, capacity, capacity) {
    check_counter("latest", latest);
    check_counter("num_events", num_events);
  }
};

/// The nodes of a lookup, and times where it is one before times.
struct RecentLookupArguments : RecentArguments {
  Tensor nodes;
  std::optional<Tensor> time;

  RecentLookupArguments(const Tensor& rows_in, const Tensor& nodes_in, const std::optional<Tensor>& time_in, int64_t k,
                        int64_t capacity)
      : RecentArguments("recent_neighbors_lookup", rows_in, k, capacity), nodes(vector("nodes", nodes_in)) {
    if (!time_in) return;
    check(capacity == 2 * k, op, ": time is given, must be None for rows of k slots; make them for causal lookups");
    time = vector("time", *time_in, "nodes", nodes.size(0));
  }

  RecentQueries queries() const { return {data<int64_t>(nodes), data<int64_t>(time), nodes.size(0)}; }
};

/// A batch of events and the state it goes to; queries where it comes with lookups.
struct RecentBatchArguments : RecentArguments {
  Tensor latest, num_events, src, dst, time;
  std::optional<Tensor> event_id, queries;
  int64_t direction;

  RecentBatchArguments(const char* op, const Tensor& rows_in, const Tensor& latest_in, const Tensor& num_events_in,
                       const Tensor& src_in, const Tensor& dst_in, const Tensor& time_in,
                       const std::optional<Tensor>& event_id_in, int64_t k, int64_t capacity, int64_t direction)
      : RecentArguments(op, rows_in, k, capacity),
        latest(latest_in),
        num_events(num_events_in),
        src(vector("src", src_in)),
        dst(vector("dst", dst_in, "src", src.size(0))),
        time(vector("time", time_in, "src", src.size(0))),
        direction(direction) {
    if (event_id_in) event_id = vector("event_id", *event_id_in, "src", src.size(0));
    check(direction >= 0 && direction <= 2, op, ": direction is ", direction,
          ", must be 0, 1 or 2; say which rows an event goes to");
    check_counter("latest", latest);
    check_counter("num_events", num_events);
    check_apart({{"src", &src}, {"dst", &dst}, {"time", &time}});
    if (event_id) check_apart({{"event_id", &*event_id}});
  }

  void take_queries(const Tensor& given, bool causal) {
    check_on_device("queries", given);
    check(given.dim() == 2 && given.size(0) == src.size(0), op, ": queries has shape ", shape_string(given),
          ", must be (", src.size(0), ", queries of an event) as src has; give each event a row");
    check(!causal || capacity == 2 * k, op,
          ": causal is set, must not be for rows of k slots; make them for causal "
          "lookups");
    queries = as_contiguous(given);
    check_apart({{"queries", &*queries}});
  }

  RecentEvents events() const {
    return {data<int64_t>(src),
            data<int64_t>(dst),
            data<int64_t>(time),
            data<int64_t>(event_id),
            src.size(0),
            mutable_data<int64_t>(latest),
            mutable_data<int64_t>(num_events),
            static_cast<EdgeDirection>(direction)};
  }
  /// Memory for the numbers that a GPU gives to events without ids; empty where they have them.
  Tensor numbers() const { return empty_on(rows, {event_id ? 0 : src.size(0)}, ScalarType::Long); }

 private:
  void check_apart(std::initializer_list<std::pair<const char*, const Tensor*>> batch) const {
    const std::pair<const char*, MemoryOf> state[] = {{"rows", rows}, {"latest", latest}, {"num_events", num_events}};
    for (const auto& [name, tensor] : batch) {
      const MemoryOf memory(*tensor);
      for (const auto& [written_name, written] : state) {
        anabranch::check_apart(op, name, memory, written_name, written);
      }
    }
  }
};

}  // namespace anabranch
