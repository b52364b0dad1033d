// The N-cache's CUDA reads in torch. Schemas are in ncache_read_ops.cpp.
#include "anabranch/temporal/ncache_read_backward.cuh"
#include "cuda.hpp"
#include "temporal/ncache_read_checks.hpp"

namespace anabranch {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> ncache_gather(const Tensor& keys, const Tensor& event_ids,
                                                         const Tensor& times, const Tensor& states,
                                                         const Tensor& nodes_in) {
  constexpr const char* op = "ncache_gather";
  NCacheSlots cache{keys, event_ids, times, states};
  cache.check_all(op, "");
  const OnDeviceOf device(keys);
  cache.make_contiguous();
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys);
  const NCacheSlots rows = ncache_rows(cache, nodes);
  dispatch_floating(states.scalar_type(), [&]<class T>(Type<T>) {
    ncache_gather_cuda(ncache_gather_of<T>(cache, nodes, rows), device.stream);
  });
  return {rows.keys, rows.event_ids, rows.times, rows.states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ncache_read(
    const Tensor& keys, const Tensor& event_ids, const Tensor& times, const Tensor& states, const Tensor& nodes_in,
    const Tensor& node_features, const std::optional<Tensor>& edge_features, const Tensor& frequency,
    const Tensor& phase, const Tensor& weight, const Tensor& bias, const Tensor& weight_hh, const Tensor& bias_hh,
    int64_t time_origin, double time_scale) {
  constexpr const char* op = "ncache_read";
  NCacheSlots cache{keys, event_ids, times, states};
  cache.check_all(op, "");
  const OnDeviceOf device(keys);
  cache.make_contiguous();
  const NCacheReadArguments in(op, cache, cache.num_nodes(), node_features, edge_features, frequency, phase, weight,
                               bias, weight_hh, bias_hh, time_origin, time_scale);
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys);
  const NCacheSlots rows = ncache_rows(cache, nodes);
  const Tensor z = empty_on(rows.states, {nodes.size(0), cache.slots(), cache.state_size()}, states.scalar_type());
  dispatch_floating(states.scalar_type(), [&]<class T>(Type<T>) {
    ncache_read_cuda(ncache_gather_of<T>(cache, nodes, rows), in.problem<T>(rows), mutable_data<T>(z), device.stream);
  });
  return {z, rows.keys, rows.event_ids, rows.times, rows.states};
}

NCacheGradientTensors::Tuple ncache_read_backward(const Tensor& dz_in, const Tensor& nodes_in, const Tensor& keys,
                                                  const Tensor& event_ids, const Tensor& times, const Tensor& states,
                                                  const Tensor& node_features,
                                                  const std::optional<Tensor>& edge_features, const Tensor& frequency,
                                                  const Tensor& phase, const Tensor& weight, const Tensor& bias,
                                                  const Tensor& weight_hh, const Tensor& bias_hh, int64_t time_origin,
                                                  double time_scale, int64_t wanted) {
  constexpr const char* op = "ncache_read_backward";
  NCacheSlots rows{keys, event_ids, times, states};
  rows.check_all(op, "");
  const OnDeviceOf device(keys);
  rows.make_contiguous();
  check_dim(op, "node_features", node_features, 2);
  const NCacheReadArguments in(op, rows, node_features.size(0), node_features, edge_features, frequency, phase, weight,
                               bias, weight_hh, bias_hh, time_origin, time_scale);
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys, rows.num_nodes());
  const Tensor dz = ncache_upstream(op, dz_in, rows);
  const NCacheGradientTensors to(in, rows, wanted);
  dispatch_floating(states.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const NCacheRead<T> problem = in.problem<T>(rows);
    const int64_t needed = ncache_read_backward_workspace(problem, wanted & wants_ncache_states);
    const Tensor workspace = empty_on(rows.states, {needed}, accumulate_type(states.scalar_type()));
    ncache_read_backward_cuda(problem, data<int64_t>(nodes), nodes.size(0), data<T>(dz),
                              to.pointers<Sum>(data_if_any<Sum>(to.states)), mutable_data<Sum>(workspace),
                              device.stream);
  });
  return to.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("ncache_gather", TORCH_BOX(&ncache_gather));
  m.impl("ncache_read", TORCH_BOX(&ncache_read));
  m.impl("ncache_read_backward", TORCH_BOX(&ncache_read_backward));
}

}  // namespace anabranch
