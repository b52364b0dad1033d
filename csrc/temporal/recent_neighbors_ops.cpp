// The last k events of every node in torch: schemas and CPU kernels. Python's docstrings say what each op means.
#include <tuple>

#include "anabranch/temporal/recent_neighbors_cpu.hpp"
#include "temporal/recent_neighbors_checks.hpp"

namespace anabranch {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor>;

void check_nodes(const RecentArguments& in, const char* name, const Tensor& nodes) {
  check_ids(in.op, name, nodes, in.rows.size(0), "pass nodes that have a row");
}

void check_values(const RecentBatchArguments& in, bool allow_late) {
  check_nodes(in, "src", in.src);
  check_nodes(in, "dst", in.dst);
  if (in.event_id) check_ids(in.op, "event_id", *in.event_id, INT64_MAX, "number events from 0 on");
  if (in.queries) check_nodes(in, "queries", *in.queries);
  if (allow_late) return;
  int64_t latest = data<int64_t>(in.latest)[0];
  const int64_t* times = data<int64_t>(in.time);
  for (int64_t i = 0, size = in.time.size(0); i < size; ++i) {
    if (times[i] < latest) [[unlikely]]
      check(false, in.op, ": time is ", times[i], " at position ", i, ", must be at least ", latest,
            " like an event before it; sort events by time, or allow late ones");
    latest = times[i];
  }
}

void clear(const Tensor& rows, const Tensor& latest, const Tensor& num_events, int64_t capacity) {
  const RecentClearArguments in(rows, latest, num_events, capacity);
  advise_huge_pages(rows);
  recent_clear_cpu(in.problem(), mutable_data<int64_t>(latest), mutable_data<int64_t>(num_events));
}

Results lookup(const Tensor& rows, const Tensor& nodes, const std::optional<Tensor>& time, int64_t k,
               int64_t capacity) {
  const RecentLookupArguments in(rows, nodes, time, k, capacity);
  check_nodes(in, "nodes", in.nodes);
  const Results results = in.results(in.nodes.size(0));
  recent_lookup_cpu(in.problem(), in.queries(), in.pointers(results));
  return results;
}

void insert(const Tensor& rows, const Tensor& latest, const Tensor& num_events, const Tensor& src, const Tensor& dst,
            const Tensor& time, const std::optional<Tensor>& event_id, int64_t k, int64_t capacity, int64_t direction,
            bool allow_late) {
  const RecentBatchArguments in("recent_neighbors_insert", rows, latest, num_events, src, dst, time, event_id, k,
                                capacity, direction);
  check_values(in, allow_late);
  recent_insert_cpu(in.problem(), in.events());
}

Results lookup_and_insert(const Tensor& rows, const Tensor& latest, const Tensor& num_events, const Tensor& src,
                          const Tensor& dst, const Tensor& time, const std::optional<Tensor>& event_id,
                          const Tensor& queries, int64_t k, int64_t capacity, int64_t direction, bool allow_late,
                          bool causal) {
  RecentBatchArguments in("recent_neighbors_lookup_and_insert", rows, latest, num_events, src, dst, time, event_id, k,
                          capacity, direction);
  in.take_queries(queries, causal);
  check_values(in, allow_late);
  const int64_t per_event = in.queries->size(1);
  const Results results = in.results(in.src.size(0), per_event);
  recent_batch_cpu(in.problem(), in.events(), data<int64_t>(in.queries), per_event, causal, in.pointers(results));
  return results;
}

}  // namespace

#define ANABRANCH_RECENT_BATCH                                                                               \
  "Tensor(a!) rows, Tensor(b!) latest, Tensor(c!) num_events, Tensor src, Tensor dst, Tensor time, Tensor? " \
  "event_id, "

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("recent_neighbors_clear(Tensor(a!) rows, Tensor(b!) latest, Tensor(c!) num_events, SymInt capacity) -> ()");
  m.def(
      "recent_neighbors_lookup(Tensor rows, Tensor nodes, Tensor? time, SymInt k, SymInt capacity) -> (Tensor "
      "neighbors, Tensor times, Tensor event_ids)");
  m.def("recent_neighbors_insert(" ANABRANCH_RECENT_BATCH
        "SymInt k, SymInt capacity, int direction, bool allow_late) -> ()");
  m.def("recent_neighbors_lookup_and_insert(" ANABRANCH_RECENT_BATCH
        "Tensor queries, SymInt k, SymInt capacity, int direction, bool allow_late, bool causal) -> (Tensor neighbors, "
        "Tensor times, Tensor event_ids)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("recent_neighbors_clear", TORCH_BOX(&clear));
  m.impl("recent_neighbors_lookup", TORCH_BOX(&lookup));
  m.impl("recent_neighbors_insert", TORCH_BOX(&insert));
  m.impl("recent_neighbors_lookup_and_insert", TORCH_BOX(&lookup_and_insert));
}

}  // namespace anabranch
