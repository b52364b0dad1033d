// Reading the N-cache: the slots of some nodes, their states brought up to date by a GRU as they are read. What it
// computes, forward and backward, and its plain-loop definition.
//
//   x   = [node_features[key]; edge_features[event id]; cos(frequency tau + phase)],  tau = (time - origin) scale
//   gx  = weight x + bias,  gh = weight_hh s + bias_hh,  both in three parts r, u, n (torch.nn.GRUCell's order)
//   r   = sigmoid(gx_r + gh_r), u = sigmoid(gx_u + gh_u), n = tanh(gx_n + r gh_n)
//   z   = (1 - u) n + u s
//
// An empty slot has z = 0 and no gradient. A feature row that does not exist (no edge features, an id out of range) is
// zeros. tau and the angle are double, so that cosines of nanosecond times are those of the angle.
//
// Layout: slots [count] = [B, S] in a row, keys, event ids and times int64, states [count, F] and features of type T;
// parameters and all arithmetic of accumulate_t<T>; weight [3F, K], K = D + De + Dt, weight_hh [3F, F]. Bytes per
// occupied slot: 24 + (D + De + 2 F) sizeof(T). FLOPs: 6 F (K + F + 2), twice as many again backward. At D = 72,
// De = 0, F = 4, Dt = 1: 336 B, 1.8 KFLOP; 14.7k slots (batch 100) are 27 MFLOP, 0.2 ms of one AVX-512 core at 128
// GFLOP/s forward, 0.4 backward; the rows come from L2.
#pragma once

#include <cmath>

#include "anabranch/core/scalar.hpp"
#include "anabranch/temporal/events.hpp"

namespace anabranch {

/// The slots of nodes, before and after they are gathered.
template <class T>
struct NCacheGather {
  const int64_t *keys, *event_ids, *times;  // the cache [num_nodes, S]
  const T* states;
  int64_t num_nodes, slots, state_size;
  const int64_t* nodes;  // [num_rows]
  int64_t num_rows;
  int64_t *row_keys, *row_event_ids, *row_times;  // [num_rows, S]
  T* row_states;

  ANABRANCH_HOST_DEVICE int64_t count() const { return num_rows * slots; }
  /// Where slot `at` of the rows comes from; -1 for a node that does not exist.
  ANABRANCH_HOST_DEVICE int64_t source(int64_t at) const {
    const int64_t node = nodes[at / slots];
    return node >= 0 && node < num_nodes ? node * slots + at % slots : -1;
  }
  /// The first slot is the node itself, whether or not it ever had an event.
  ANABRANCH_HOST_DEVICE int64_t key_of(int64_t at, int64_t from) const {
    return from < 0 ? no_node : at % slots == 0 ? nodes[at / slots] : keys[from];
  }
};

template <class T>
struct NCacheRead {
  using Sum = accumulate_t<T>;
  int64_t count;
  const int64_t *keys, *event_ids, *times;
  const T* states;
  int64_t state_size;
  const T* node_features;  // [num_nodes, node_width]
  int64_t num_nodes, node_width;
  const T* edge_features;  // [num_events, edge_width]
  int64_t num_events, edge_width;
  const Sum *frequency, *phase;  // [time_width]
  int64_t time_width;
  const Sum *weight, *bias, *weight_hh, *bias_hh;
  int64_t time_origin;
  double time_scale;

  ANABRANCH_HOST_DEVICE int64_t width() const { return node_width + edge_width + time_width; }
  ANABRANCH_HOST_DEVICE int64_t gates() const { return 3 * state_size; }
  ANABRANCH_HOST_DEVICE bool occupied(int64_t i) const { return keys[i] >= 0 && event_ids[i] >= 0; }
  ANABRANCH_HOST_DEVICE const T* node_row(int64_t i) const {
    return keys[i] >= 0 && keys[i] < num_nodes ? node_features + keys[i] * node_width : nullptr;
  }
  ANABRANCH_HOST_DEVICE const T* edge_row(int64_t i) const {
    return event_ids[i] >= 0 && event_ids[i] < num_events ? edge_features + event_ids[i] * edge_width : nullptr;
  }
  /// The difference wraps where it leaves int64, as torch's does.
  ANABRANCH_HOST_DEVICE double tau(int64_t i) const {
    const uint64_t since = static_cast<uint64_t>(times[i]) - static_cast<uint64_t>(time_origin);
    return static_cast<double>(static_cast<int64_t>(since)) * time_scale;
  }
  ANABRANCH_HOST_DEVICE double angle(double tau, int64_t d) const {
    return static_cast<double>(frequency[d]) * tau + static_cast<double>(phase[d]);
  }
};

/// Gradients, each null where not wanted. Those of tables are added to what is there, in the order of the slots.
template <class Sum>
struct NCacheReadGradients {
  Sum* states;                                                   // [count, F]: of the gathered states, written
  Sum* node_features;                                            // [num_nodes, node_width]
  Sum* edge_features;                                            // [num_events, edge_width]
  Sum *frequency, *phase, *weight, *bias, *weight_hh, *bias_hh;  // written
};

namespace detail {

template <class Sum>
ANABRANCH_HOST_DEVICE inline Sum gru_sigmoid(Sum x) {
  if constexpr (std::is_same_v<Sum, float>) {
    return 1.0f / (1.0f + ::expf(-x));
  } else {
    return 1.0 / (1.0 + ::exp(-x));
  }
}
template <class Sum>
ANABRANCH_HOST_DEVICE inline Sum gru_tanh(Sum x) {
  if constexpr (std::is_same_v<Sum, float>) {
    return ::tanhf(x);
  } else {
    return ::tanh(x);
  }
}

/// One state of a slot: its gates from their three sums, forward and backward.
template <class Sum>
struct GruState {
  Sum r, u, n, hidden_n, state;

  ANABRANCH_HOST_DEVICE static GruState of(Sum sum_r, Sum sum_u, Sum input_n, Sum hidden_n, Sum state) {
    const Sum r = gru_sigmoid(sum_r);
    return {r, gru_sigmoid(sum_u), gru_tanh(input_n + r * hidden_n), hidden_n, state};
  }
  ANABRANCH_HOST_DEVICE Sum value() const { return (1 - u) * n + u * state; }

  struct Gradients {
    Sum r, u, n, hidden_n;  // of the sums: r's and u's are those of both gx and gh, n's of gx alone
  };
  ANABRANCH_HOST_DEVICE Gradients backward(Sum dz) const {
    const Sum dn = dz * (1 - u) * (1 - n * n);
    return {dn * hidden_n * r * (1 - r), dz * (state - n) * u * (1 - u), dn, dn * r};
  }
};

/// x of slot i.
template <class T>
void ncache_input(const NCacheRead<T>& problem, int64_t i, accumulate_t<T>* x) {
  using Sum = accumulate_t<T>;
  const T *node = problem.node_row(i), *edge = problem.edge_row(i);
  for (int64_t k = 0; k < problem.node_width; ++k) *x++ = node ? static_cast<Sum>(node[k]) : Sum(0);
  for (int64_t k = 0; k < problem.edge_width; ++k) *x++ = edge ? static_cast<Sum>(edge[k]) : Sum(0);
  for (int64_t d = 0; d < problem.time_width; ++d) {
    *x++ = static_cast<Sum>(std::cos(problem.angle(problem.tau(i), d)));
  }
}

template <class T>
GruState<accumulate_t<T>> ncache_gates(const NCacheRead<T>& problem, int64_t i, int64_t f, const accumulate_t<T>* x) {
  using Sum = accumulate_t<T>;
  const int64_t F = problem.state_size;
  const T* state = problem.states + i * F;
  Sum input[3], hidden[3];
  for (int64_t gate = 0; gate < 3; ++gate) {
    const int64_t row = gate * F + f;
    input[gate] = problem.bias[row], hidden[gate] = problem.bias_hh[row];
    for (int64_t k = 0; k < problem.width(); ++k) input[gate] += problem.weight[row * problem.width() + k] * x[k];
    for (int64_t k = 0; k < F; ++k) hidden[gate] += problem.weight_hh[row * F + k] * static_cast<Sum>(state[k]);
  }
  return GruState<Sum>::of(input[0] + hidden[0], input[1] + hidden[1], input[2], hidden[2], static_cast<Sum>(state[f]));
}

}  // namespace detail

/// Fills the rows of the gather.
template <class T>
void ncache_gather_reference(const NCacheGather<T>& gather) {
  for (int64_t at = 0; at < gather.count(); ++at) {
    const int64_t from = gather.source(at);
    gather.row_keys[at] = gather.key_of(at, from);
    gather.row_event_ids[at] = from < 0 ? no_event : gather.event_ids[from];
    gather.row_times[at] = from < 0 ? -1 : gather.times[from];
    for (int64_t f = 0; f < gather.state_size; ++f) {
      gather.row_states[at * gather.state_size + f] = from < 0 ? T(0) : gather.states[from * gather.state_size + f];
    }
  }
}

}  // namespace anabranch
