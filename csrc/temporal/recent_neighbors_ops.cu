// The recent_neighbors ops' CUDA kernels in torch. Schemas are in recent_neighbors_ops.cpp. Values stay on the device:
// ids and times are not checked, and late events are always taken.
#include "anabranch/temporal/recent_neighbors.cuh"
#include "cuda.hpp"
#include "temporal/recent_neighbors_checks.hpp"

namespace anabranch {
namespace {

using Results = std::tuple<Tensor, Tensor, Tensor>;

void clear(const Tensor& rows, const Tensor& latest, const Tensor& num_events, int64_t capacity) {
  const RecentClearArguments in(rows, latest, num_events, capacity);
  const OnDeviceOf device(rows);
  recent_clear_cuda(in.problem(), mutable_data<int64_t>(latest), mutable_data<int64_t>(num_events), device.stream);
}

Results lookup(const Tensor& rows, const Tensor& nodes, const std::optional<Tensor>& time, int64_t k,
               int64_t capacity) {
  const OnDeviceOf device(rows);
  const RecentLookupArguments in(rows, nodes, time, k, capacity);
  const Results results = in.results(in.nodes.size(0));
  recent_lookup_cuda(in.problem(), in.queries(), in.pointers(results), device.stream);
  return results;
}

void insert(const Tensor& rows, const Tensor& latest, const Tensor& num_events, const Tensor& src, const Tensor& dst,
            const Tensor& time, const std::optional<Tensor>& event_id, int64_t k, int64_t capacity, int64_t direction,
            bool) {
  const OnDeviceOf device(rows);
  const RecentBatchArguments in("recent_neighbors_insert", rows, latest, num_events, src, dst, time, event_id, k,
                                capacity, direction);
  const Tensor numbers = in.numbers();
  recent_insert_cuda(in.problem(), in.events(), data_if_any<int64_t>(numbers), device.stream);
}

Results lookup_and_insert(const Tensor& rows, const Tensor& latest, const Tensor& num_events, const Tensor& src,
                          const Tensor& dst, const Tensor& time, const std::optional<Tensor>& event_id,
                          const Tensor& queries, int64_t k, int64_t capacity, int64_t direction, bool, bool causal) {
  const OnDeviceOf device(rows);
  RecentBatchArguments in("recent_neighbors_lookup_and_insert", rows, latest, num_events, src, dst, time, event_id, k,
                          capacity, direction);
  in.take_queries(queries, causal);
  const int64_t per_event = in.queries->size(1);
  const Results results = in.results(in.src.size(0), per_event);
  const Tensor numbers = in.numbers();
  recent_batch_cuda(in.problem(), in.events(), data<int64_t>(in.queries), per_event, causal, in.pointers(results),
                    data_if_any<int64_t>(numbers), device.stream);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("recent_neighbors_clear", TORCH_BOX(&clear));
  m.impl("recent_neighbors_lookup", TORCH_BOX(&lookup));
  m.impl("recent_neighbors_insert", TORCH_BOX(&insert));
  m.impl("recent_neighbors_lookup_and_insert", TORCH_BOX(&lookup_and_insert));
}

}  // namespace anabranch
