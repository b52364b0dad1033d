// The gradients of the expert FFN: what they are, as plain loops. Saved from the forward: x and pre_activation alone.
//
// With d = down[g]^T dy[t], h = act(gate) * up, w = weights[e], for every entry e = (t, g):
//   dweights[e] = <h, d> + <down_bias[g], dy[t]>           (identity group: <x[t], dy[t]>; zero group: 0)
//   ddown[g]   += w dy[t] h^T          ddown_bias[g] += w dy[t]
//   dgate       = w d * up * act'(gate)         dup = w d * act(gate)
//   dgate_up[g] += [dgate; dup] x[t]^T dgate_up_bias[g] += [dgate; dup]
//   dx[t]      += gate_up[g]^T [dgate; dup]    (identity group: w dy[t])
#pragma once

#include <vector>

#include "anabranch/experts/expert_ffn.hpp"

namespace anabranch {

namespace detail {

template <class T, class Sum>
void store_expert_linear(const ExpertLinear<T>& linear, const std::vector<Sum>& weight, const std::vector<Sum>& bias,
                         int64_t num_experts, int64_t out_features, int64_t in_features) {
  for (int64_t i = 0; linear.weight && i < static_cast<int64_t>(weight.size()); ++i) {
    const int64_t g = i / (out_features * in_features), o = i / in_features % out_features, p = i % in_features;
    linear.weight[g * linear.expert_stride + o * linear.out_stride + p * linear.in_stride] = T(weight[i]);
  }
  for (int64_t i = 0; linear.bias && i < num_experts * out_features; ++i) linear.bias[i] = T(bias[i]);
}

}  // namespace detail

/// Every gradient that is not null in `gradients` is written whole; those of frozen experts and of experts without
/// entries are zero. Columns of pre_activation beyond an expert's width are not read.
template <class T>
void expert_ffn_backward_reference(const ExpertFfn<T>& ffn, const T* dy, const T* pre_activation,
                                   const ExpertFfnGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t parts = ffn.num_parts(), rows = parts * ffn.intermediate;
  std::vector<Sum> dx(ffn.num_items * ffn.in_features, 0);
  std::vector<Sum> dgate_up(ffn.num_experts * rows * ffn.in_features, 0), dgate_up_bias(ffn.num_experts * rows, 0);
  std::vector<Sum> ddown(ffn.num_experts * ffn.out_features * ffn.intermediate, 0);
  std::vector<Sum> ddown_bias(ffn.num_experts * ffn.out_features, 0);
  for (int64_t g = 0; g < ffn.num_groups(); ++g) {
    for (int64_t e = ffn.group_offsets[g]; e < ffn.group_offsets[g + 1]; ++e) {
      const int64_t t = ffn.item(e), own = ffn.expert(g);
      const T *x = ffn.x + t * ffn.in_features, *upstream = dy + t * ffn.out_features;
      const Sum weight = ffn.weights ? ffn.weights[e] : Sum(1);
      Sum dweight = 0;
      if (g >= ffn.num_experts) {
        for (int64_t o = 0; ffn.is_identity(g) && o < ffn.out_features; ++o) {
          dweight += static_cast<Sum>(x[o]) * static_cast<Sum>(upstream[o]);
          dx[t * ffn.in_features + o] += weight * static_cast<Sum>(upstream[o]);
        }
        if (gradients.weights) gradients.weights[e] = dweight;
        continue;
      }
      const bool trains = !gradients.frozen || !gradients.frozen[g];
      for (int64_t o = 0; o < ffn.out_features; ++o) {
        const Sum value = static_cast<Sum>(upstream[o]);
        if (ffn.down.bias) dweight += static_cast<Sum>(ffn.down.bias[own * ffn.out_features + o]) * value;
        if (trains) ddown_bias[own * ffn.out_features + o] += weight * value;
      }
      for (int64_t j = 0; j < ffn.width(g); ++j) {
        Sum d = 0;
        for (int64_t o = 0; o < ffn.out_features; ++o) {
          const int64_t at = own * ffn.down.expert_stride + o * ffn.down.out_stride + j * ffn.down.in_stride;
          d += static_cast<Sum>(ffn.down.weight[at]) * static_cast<Sum>(upstream[o]);
        }
        const T* saved = pre_activation + e * rows + j;
        const auto [value, derivative] = activate(ffn.activation, static_cast<Sum>(saved[0]));
        const Sum up = ffn.gated ? static_cast<Sum>(saved[ffn.intermediate]) : Sum(1);
        const Sum half[2] = {weight * d * up * derivative, weight * d * value};
        dweight += value * up * d;
        for (int64_t o = 0; trains && o < ffn.out_features; ++o) {
          ddown[(own * ffn.out_features + o) * ffn.intermediate + j] +=
              weight * value * up * static_cast<Sum>(upstream[o]);
        }
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t row = ffn.gate_up_row(part, j);
          if (trains) dgate_up_bias[own * rows + row] += half[part];
          for (int64_t i = 0; i < ffn.in_features; ++i) {
            const int64_t at =
                own * ffn.gate_up.expert_stride + row * ffn.gate_up.out_stride + i * ffn.gate_up.in_stride;
            dx[t * ffn.in_features + i] += half[part] * static_cast<Sum>(ffn.gate_up.weight[at]);
            if (trains) dgate_up[(own * rows + row) * ffn.in_features + i] += half[part] * static_cast<Sum>(x[i]);
          }
        }
      }
      if (gradients.weights) gradients.weights[e] = dweight;
    }
  }
  for (int64_t i = 0; gradients.x && i < ffn.num_items * ffn.in_features; ++i) gradients.x[i] = T(dx[i]);
  const int64_t stored = ffn.shared ? 1 : ffn.num_experts;
  detail::store_expert_linear(gradients.gate_up, dgate_up, dgate_up_bias, stored, rows, ffn.in_features);
  detail::store_expert_linear(gradients.down, ddown, ddown_bias, stored, ffn.out_features, ffn.intermediate);
}

}  // namespace anabranch
