// The plain loops that define the N-cache's read (ncache_read.hpp), forward and backward.
#pragma once

#include <vector>

#include "anabranch/temporal/ncache_read.hpp"

namespace anabranch {

/// z [count, F].
template <class T>
void ncache_read_reference(const NCacheRead<T>& problem, T* z) {
  using Sum = accumulate_t<T>;
  std::vector<Sum> x(static_cast<size_t>(problem.width()));
  for (int64_t i = 0; i < problem.count; ++i) {
    const bool occupied = problem.occupied(i);
    if (occupied) detail::ncache_input(problem, i, x.data());
    for (int64_t f = 0; f < problem.state_size; ++f) {
      z[i * problem.state_size + f] = T(occupied ? detail::ncache_gates(problem, i, f, x.data()).value() : Sum(0));
    }
  }
}

/// Gradients for dz [count, F]. Tables must hold zeros, or what is to be added to.
template <class T>
void ncache_read_backward_reference(const NCacheRead<T>& problem, const T* dz,
                                    const NCacheReadGradients<accumulate_t<T>>& to) {
  using Sum = accumulate_t<T>;
  const int64_t F = problem.state_size, K = problem.width();
  const auto clear = [](Sum* values, int64_t count) {
    for (int64_t k = 0; values && k < count; ++k) values[k] = 0;
  };
  clear(to.states, problem.count * F), clear(to.weight, 3 * F * K), clear(to.weight_hh, 3 * F * F);
  clear(to.bias, 3 * F), clear(to.bias_hh, 3 * F);
  clear(to.frequency, problem.time_width), clear(to.phase, problem.time_width);
  std::vector<Sum> x(static_cast<size_t>(K));
  for (int64_t i = 0; i < problem.count; ++i) {
    if (!problem.occupied(i)) continue;
    detail::ncache_input(problem, i, x.data());
    const T* state = problem.states + i * F;
    std::vector<Sum> dx(static_cast<size_t>(K));
    for (int64_t f = 0; f < F; ++f) {
      const auto gru = detail::ncache_gates(problem, i, f, x.data());
      const Sum given = static_cast<Sum>(dz[i * F + f]);
      const auto sums = gru.backward(given);
      const Sum input[3] = {sums.r, sums.u, sums.n}, hidden[3] = {sums.r, sums.u, sums.hidden_n};
      if (to.states) to.states[i * F + f] += given * gru.u;
      for (int64_t gate = 0; gate < 3; ++gate) {
        const int64_t row = gate * F + f;
        if (to.bias) to.bias[row] += input[gate];
        if (to.bias_hh) to.bias_hh[row] += hidden[gate];
        for (int64_t k = 0; k < K; ++k) {
          if (to.weight) to.weight[row * K + k] += input[gate] * x[k];
          dx[k] += input[gate] * problem.weight[row * K + k];
        }
        for (int64_t k = 0; k < F; ++k) {
          if (to.weight_hh) to.weight_hh[row * F + k] += hidden[gate] * static_cast<Sum>(state[k]);
          if (to.states) to.states[i * F + k] += hidden[gate] * problem.weight_hh[row * F + k];
        }
      }
    }
    const int64_t edge = problem.node_width, time = edge + problem.edge_width;
    if (to.node_features && problem.node_row(i)) {
      for (int64_t k = 0; k < edge; ++k) to.node_features[problem.keys[i] * problem.node_width + k] += dx[k];
    }
    if (to.edge_features && problem.edge_row(i)) {
      for (int64_t k = 0; k < problem.edge_width; ++k) {
        to.edge_features[problem.event_ids[i] * problem.edge_width + k] += dx[edge + k];
      }
    }
    for (int64_t d = 0; d < problem.time_width; ++d) {
      const double tau = problem.tau(i), dangle = -std::sin(problem.angle(tau, d)) * static_cast<double>(dx[time + d]);
      if (to.frequency) to.frequency[d] += static_cast<Sum>(dangle * tau);
      if (to.phase) to.phase[d] += static_cast<Sum>(dangle);
    }
  }
}

}  // namespace anabranch
