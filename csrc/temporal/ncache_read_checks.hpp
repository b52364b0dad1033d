// The arguments of the N-cache's read and its backward, on every device.
#pragma once

#include <optional>
#include <tuple>
#include <type_traits>

#include "anabranch/temporal/ncache_read.hpp"
#include "temporal/ncache_checks.hpp"

namespace anabranch {

/// Bits of `wanted`, in the order of the results.
enum WantedNCacheGradient {
  wants_ncache_states = 1,
  wants_ncache_node_features = 2,
  wants_ncache_edge_features = 4,
  wants_ncache_frequency = 8,
  wants_ncache_phase = 16,
  wants_ncache_weight = 32,
  wants_ncache_bias = 64,
  wants_ncache_weight_hh = 128,
  wants_ncache_bias_hh = 256,
};

/// What the slots are multiplied by and with. Features have the states' dtype, parameters that of sums.
struct NCacheReadArguments {
  const char* op;
  Tensor node_features;
  std::optional<Tensor> edge_features;
  Tensor frequency, phase, weight, bias, weight_hh, bias_hh;
  int64_t state_size, time_origin;
  double time_scale;

  NCacheReadArguments(const char* op, const NCacheSlots& slots, int64_t num_nodes, const Tensor& node_features_in,
                      const std::optional<Tensor>& edge_features_in, const Tensor& frequency_in, const Tensor& phase_in,
                      const Tensor& weight_in, const Tensor& bias_in, const Tensor& weight_hh_in,
                      const Tensor& bias_hh_in, int64_t time_origin, double time_scale)
      : op(op), state_size(slots.state_size()), time_origin(time_origin), time_scale(time_scale) {
    const ScalarType type = slots.states.scalar_type();
    check_table("node_features", node_features_in, slots);
    check(node_features_in.size(0) == num_nodes, op, ": node_features has shape ", shape_string(node_features_in),
          ", must be (", num_nodes, ", any) as the cache has ", num_nodes, " nodes; give each node a row");
    if (edge_features_in) check_table("edge_features", *edge_features_in, slots);
    check_dtype(op, "node_features", node_features_in, type);
    node_features = as_contiguous(node_features_in), edge_features = as_contiguous(edge_features_in);
    const int64_t gates = 3 * state_size;
    check_dim(op, "frequency", frequency_in, 1);
    const int64_t times = frequency_in.size(0);
    const int64_t width = node_features.size(1) + (edge_features ? edge_features->size(1) : 0) + times;
    frequency = parameter("frequency", frequency_in, slots, {times});
    phase = parameter("phase", phase_in, slots, {times});
    weight = parameter("weight", weight_in, slots, {gates, width});
    bias = parameter("bias", bias_in, slots, {gates});
    weight_hh = parameter("weight_hh", weight_hh_in, slots, {gates, state_size});
    bias_hh = parameter("bias_hh", bias_hh_in, slots, {gates});
  }

  int64_t num_nodes() const { return node_features.size(0); }
  int64_t num_events() const { return edge_features ? edge_features->size(0) : 0; }

  /// On the CPU: what was gathered names nodes and events that exist.
  void check_slots(const NCacheSlots& slots) const {
    const int64_t *keys = data<int64_t>(slots.keys), *events = data<int64_t>(slots.event_ids);
    const int64_t last_event = edge_features ? num_events() : INT64_MAX;
    bool in_range = true;
    for (int64_t i = 0; i < slots.keys.numel(); ++i) in_range &= (keys[i] < num_nodes()) & (events[i] < last_event);
    for (int64_t i = 0; !in_range && i < slots.keys.numel(); ++i) {
      check(keys[i] < num_nodes(), op, ": keys holds node ", keys[i], ", must be below ", num_nodes(),
            "; the cache is damaged: reset it");
      check(events[i] < last_event, op, ": event_ids holds event ", events[i], ", must be below ", num_events(),
            " as edge_features has so many rows; give each event a row");
    }
  }

  /// On the CPU: whether features made the result NaN, by a look at the result alone, of which there is less. A NaN
  /// that weights or states made stays.
  template <class T>
  void check_result(const NCacheSlots& slots, const Tensor& z) const {
    if (!has_nan(data<T>(z), z.numel())) [[likely]]
      return;
    const int64_t *keys = data<int64_t>(slots.keys), *events = data<int64_t>(slots.event_ids);
    for (int64_t i = 0; i < slots.keys.numel(); ++i) {
      if (keys[i] >= 0) check_row<T>("node_features", node_features, keys[i]);
      if (edge_features && events[i] >= 0) check_row<T>("edge_features", *edge_features, events[i]);
    }
  }

  template <class T>
  NCacheRead<T> problem(const NCacheSlots& slots) const {
    using Sum = accumulate_t<T>;
    return {.count = slots.keys.numel(),
            .keys = data<int64_t>(slots.keys),
            .event_ids = data<int64_t>(slots.event_ids),
            .times = data<int64_t>(slots.times),
            .states = data<T>(slots.states),
            .state_size = state_size,
            .node_features = data<T>(node_features),
            .num_nodes = num_nodes(),
            .node_width = node_features.size(1),
            .edge_features = data<T>(edge_features),
            .num_events = num_events(),
            .edge_width = edge_features ? edge_features->size(1) : 0,
            .frequency = data<Sum>(frequency),
            .phase = data<Sum>(phase),
            .time_width = frequency.size(0),
            .weight = data<Sum>(weight),
            .bias = data<Sum>(bias),
            .weight_hh = data<Sum>(weight_hh),
            .bias_hh = data<Sum>(bias_hh),
            .time_origin = time_origin,
            .time_scale = time_scale};
  }

 private:
  template <class T>
  static bool has_nan(const T* values, int64_t size) {
    int found = 0;
    for (int64_t i = 0; i < size; ++i) {
      if constexpr (std::is_floating_point_v<T>) {
        found |= values[i] != values[i];
      } else {  // 16 bits: above infinity
        found |= (values[i].bits & 0x7fff) > (std::is_same_v<T, half> ? 0x7c00 : 0x7f80);
      }
    }
    return found != 0;
  }
  template <class T>
  void check_row(const char* name, const Tensor& table, int64_t row) const {
    const int64_t width = table.size(1);
    check(!has_nan(data<T>(table) + row * width, width), op, ": ", name, " has a NaN in row ", row,
          ", must have none; clean the features, or reset a state that diverged");
  }
  void check_table(const char* name, const Tensor& table, const NCacheSlots& slots) const {
    check_same_device(op, name, table, "keys", slots.keys);
    check_dim(op, name, table, 2);
    check_dtype(op, name, table, slots.states.scalar_type());
  }
  Tensor parameter(const char* name, const Tensor& given, const NCacheSlots& slots,
                   std::initializer_list<int64_t> shape) const {
    check_same_device(op, name, given, "keys", slots.keys);
    check_dtype(op, name, given, accumulate_type(slots.states.scalar_type()));
    bool fits = given.dim() == static_cast<int64_t>(shape.size());
    std::string wanted;
    for (size_t i = 0; i < shape.size(); ++i) {
      fits = fits && given.size(static_cast<int64_t>(i)) == shape.begin()[i];
      wanted += (i ? ", " : "") + std::to_string(shape.begin()[i]);
    }
    check(fits, op, ": ", name, " has shape ", shape_string(given), ", must be (", wanted,
          shape.size() == 1 ? ",)" : ")", " for states of size ", state_size,
          "; make the parameters for these features");
    return as_contiguous(given);
  }
};

/// Rows of slots for `nodes`, to be filled.
inline NCacheSlots ncache_rows(const NCacheSlots& cache, const Tensor& nodes) {
  const int64_t rows = nodes.size(0), slots = cache.slots();
  const auto ids = [&] { return empty_on(cache.keys, {rows, slots}, ScalarType::Long); };
  return {ids(), ids(), ids(), empty_on(cache.states, {rows, slots, cache.state_size()}, cache.states.scalar_type())};
}

template <class T>
NCacheGather<T> ncache_gather_of(const NCacheSlots& cache, const Tensor& nodes, const NCacheSlots& rows) {
  return {data<int64_t>(cache.keys),
          data<int64_t>(cache.event_ids),
          data<int64_t>(cache.times),
          data<T>(cache.states),
          cache.num_nodes(),
          cache.slots(),
          cache.state_size(),
          data<int64_t>(nodes),
          nodes.size(0),
          mutable_data<int64_t>(rows.keys),
          mutable_data<int64_t>(rows.event_ids),
          mutable_data<int64_t>(rows.times),
          mutable_data<T>(rows.states)};
}

/// The gradients of a read, in the dtype of sums; empty where not wanted. Those of tables start as zeros.
struct NCacheGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
  Tensor states, node_features, edge_features, frequency, phase, weight, bias, weight_hh, bias_hh;

  NCacheGradientTensors(const NCacheReadArguments& in, const NCacheSlots& rows, int64_t wanted) {
    const ScalarType type = accumulate_type(rows.states.scalar_type());
    const auto none = [&] { return empty_on(rows.states, {0}, type); };
    const auto table = [&](int64_t bit, std::initializer_list<int64_t> shape) {
      return wanted & bit ? zeros_on(rows.states, shape, type) : none();
    };
    const auto like = [&](int64_t bit, const Tensor& parameter) {
      if (!(wanted & bit)) return none();
      return parameter.dim() == 2 ? empty_on(parameter, {parameter.size(0), parameter.size(1)}, type)
                                  : empty_on(parameter, {parameter.size(0)}, type);
    };
    states = table(wants_ncache_states, {in.num_nodes(), rows.slots(), rows.state_size()});
    node_features = table(wants_ncache_node_features, {in.num_nodes(), in.node_features.size(1)});
    edge_features =
        in.edge_features ? table(wants_ncache_edge_features, {in.num_events(), in.edge_features->size(1)}) : none();
    frequency = like(wants_ncache_frequency, in.frequency), phase = like(wants_ncache_phase, in.phase);
    weight = like(wants_ncache_weight, in.weight), bias = like(wants_ncache_bias, in.bias);
    weight_hh = like(wants_ncache_weight_hh, in.weight_hh), bias_hh = like(wants_ncache_bias_hh, in.bias_hh);
  }
  Tuple tuple() const {
    return {states, node_features, edge_features, frequency, phase, weight, bias, weight_hh, bias_hh};
  }
  /// `row_states` takes the gradient of the gathered states.
  template <class Sum>
  NCacheReadGradients<Sum> pointers(Sum* row_states) const {
    return {row_states,
            data_if_any<Sum>(node_features),
            data_if_any<Sum>(edge_features),
            data_if_any<Sum>(frequency),
            data_if_any<Sum>(phase),
            data_if_any<Sum>(weight),
            data_if_any<Sum>(bias),
            data_if_any<Sum>(weight_hh),
            data_if_any<Sum>(bias_hh)};
  }
};

/// dz [B, S, F] as the backward takes it.
inline Tensor ncache_upstream(const char* op, const Tensor& dz, const NCacheSlots& rows) {
  check_same_device(op, "dz", dz, "keys", rows.keys);
  check_dtype(op, "dz", dz, rows.states.scalar_type());
  check(
      dz.dim() == 3 && dz.size(0) == rows.num_nodes() && dz.size(1) == rows.slots() && dz.size(2) == rows.state_size(),
      op, ": dz has shape ", shape_string(dz), ", must be ", shape_string(rows.states),
      " like the states that were read; pass the gradient of z");
  return as_contiguous(dz);
}

}  // namespace anabranch
