// The N-cache's read in torch: schemas and CPU kernels.
#include "anabranch/temporal/ncache_gather_cpu.hpp"
#include "anabranch/temporal/ncache_read_cpu.hpp"
#include "temporal/ncache_read_checks.hpp"

namespace anabranch {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ncache_read(
    const Tensor& keys, const Tensor& event_ids, const Tensor& times, const Tensor& states, const Tensor& nodes_in,
    const Tensor& node_features, const std::optional<Tensor>& edge_features, const Tensor& frequency,
    const Tensor& phase, const Tensor& weight, const Tensor& bias, const Tensor& weight_hh, const Tensor& bias_hh,
    int64_t time_origin, double time_scale) {
  constexpr const char* op = "ncache_read";
  NCacheSlots cache{keys, event_ids, times, states};
  cache.check_all(op, "");
  cache.make_contiguous();
  const NCacheReadArguments in(op, cache, cache.num_nodes(), node_features, edge_features, frequency, phase, weight,
                               bias, weight_hh, bias_hh, time_origin, time_scale);
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys);
  check_ncache_nodes(op, "nodes", nodes, cache.num_nodes());
  const NCacheSlots rows = ncache_rows(cache, nodes);
  const Tensor z = empty_on(rows.states, {nodes.size(0), cache.slots(), cache.state_size()}, states.scalar_type());
  dispatch_floating(states.scalar_type(), [&]<class T>(Type<T>) {
    ncache_gather_cpu(ncache_gather_of<T>(cache, nodes, rows));
    in.check_slots(rows);
    ncache_read_cpu(in.problem<T>(rows), mutable_data<T>(z));
    in.check_result<T>(rows, z);
  });
  return {z, rows.keys, rows.event_ids, rows.times, rows.states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ncache_gather(const Tensor& keys, const Tensor& event_ids,
                                                         const Tensor& times, const Tensor& states,
                                                         const Tensor& nodes_in) {
  constexpr const char* op = "ncache_gather";
  NCacheSlots cache{keys, event_ids, times, states};
  cache.check_all(op, "");
  cache.make_contiguous();
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys);
  check_ncache_nodes(op, "nodes", nodes, cache.num_nodes());
  const NCacheSlots rows = ncache_rows(cache, nodes);
  dispatch_floating(states.scalar_type(),
                    [&]<class T>(Type<T>) { ncache_gather_cpu(ncache_gather_of<T>(cache, nodes, rows)); });
  return {rows.keys, rows.event_ids, rows.times, rows.states};
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
  rows.make_contiguous();
  check_dim(op, "node_features", node_features, 2);
  const NCacheReadArguments in(op, rows, node_features.size(0), node_features, edge_features, frequency, phase, weight,
                               bias, weight_hh, bias_hh, time_origin, time_scale);
  const Tensor nodes = ncache_ids(op, "nodes", nodes_in, keys, rows.num_nodes());
  check_ncache_nodes(op, "nodes", nodes, in.num_nodes());
  const Tensor dz = ncache_upstream(op, dz_in, rows);
  in.check_slots(rows);
  const NCacheGradientTensors to(in, rows, wanted);
  dispatch_floating(states.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const int64_t numbers = rows.slots() * rows.state_size();
    const Temporary<Sum> row_states(static_cast<size_t>(wanted & wants_ncache_states ? nodes.size(0) * numbers : 0));
    const bool with_states = wanted & wants_ncache_states;
    ncache_read_backward_cpu(in.problem<T>(rows), data<T>(dz),
                             to.pointers<Sum>(with_states ? row_states.data() : nullptr));
    for (int64_t row = 0; with_states && row < nodes.size(0); ++row) {
      Sum* table = mutable_data<Sum>(to.states) + data<int64_t>(nodes)[row] * numbers;
      for (int64_t k = 0; k < numbers; ++k) table[k] += row_states.data()[row * numbers + k];
    }
  });
  return to.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "ncache_gather(Tensor keys, Tensor event_ids, Tensor times, Tensor states, Tensor nodes) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "ncache_read(Tensor keys, Tensor event_ids, Tensor times, Tensor states, Tensor nodes, Tensor node_features, "
      "Tensor? edge_features, Tensor frequency, Tensor phase, Tensor weight, Tensor bias, Tensor weight_hh, "
      "Tensor bias_hh, int time_origin, float time_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "ncache_read_backward(Tensor dz, Tensor nodes, Tensor keys, Tensor event_ids, Tensor times, Tensor states, "
      "Tensor node_features, Tensor? edge_features, Tensor frequency, Tensor phase, Tensor weight, Tensor bias, "
      "Tensor weight_hh, Tensor bias_hh, int time_origin, float time_scale, int wanted) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("ncache_gather", TORCH_BOX(&ncache_gather));
  m.impl("ncache_read", TORCH_BOX(&ncache_read));
  m.impl("ncache_read_backward", TORCH_BOX(&ncache_read_backward));
}

}  // namespace anabranch
