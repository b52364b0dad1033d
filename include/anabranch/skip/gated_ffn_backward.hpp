// The gradients of the gated FFN: what they are, as plain loops. Saved from the forward: x and the first products'
// outputs, rows in the order of the groups.
//
// A row's block is expert_ffn_backward.hpp's with weight scale * gate[t]; its dx goes through the norm and is added to
// what the residual passes on. dgate[t] = scale * <dy[t], f(norm(x[t]))> for rows that ran, 0 for the others: which
// rows run has no gradient. dbase[t] = dy[t] for rows that skipped, else 0. A feature's weights get gradients from the
// rows whose width reaches it.
#pragma once

#include <vector>

#include "anabranch/skip/gated_ffn.hpp"

namespace anabranch {

/// Gradients to write; null where not wanted. Linear ones have their operand's strides.
template <class T>
struct GatedFfnGradients {
  T* x;                           // [num_rows, features]
  accumulate_t<T>* gate;          // [num_rows]
  T *norm_weight, *norm_bias;     // [features]
  ExpertLinear<T> gate_up, down;  // of `ffn`
  T* base;                        // [num_rows, features]
  ExpertLinear<T> other_gate_up, other_down;
};

namespace detail {

/// One row of a branch; adds to dinput and the weights' gradients, returns <dy, f(input)>.
template <class T>
struct BranchSums {
  using Sum = accumulate_t<T>;
  std::vector<Sum> gate_up, gate_up_bias, down, down_bias;

  BranchSums(const FfnBranch<T>& ffn, int64_t features)
      : gate_up(ffn.num_parts() * ffn.intermediate * features),
        gate_up_bias(ffn.num_parts() * ffn.intermediate),
        down(features * ffn.intermediate),
        down_bias(features) {}

  Sum add_row(const FfnBranch<T>& ffn, int64_t features, int64_t width, const T* input, const T* dy, Sum weight,
              Sum* dinput) {
    Sum dot = 0;
    for (int64_t o = 0; o < features; ++o) {
      if (ffn.down.bias) dot += static_cast<Sum>(ffn.down.bias[o]) * static_cast<Sum>(dy[o]);
      down_bias[o] += weight * static_cast<Sum>(dy[o]);
    }
    for (int64_t j = 0; j < width; ++j) {
      Sum half[2] = {0, 1}, d = 0;
      for (int64_t part = 0; part < ffn.num_parts(); ++part) {
        const int64_t row = part * ffn.intermediate + j;
        half[part] = ffn.gate_up.bias ? static_cast<Sum>(ffn.gate_up.bias[row]) : Sum(0);
        for (int64_t i = 0; i < features; ++i)
          half[part] += weight_of(ffn.gate_up, row, i) * static_cast<Sum>(input[i]);
      }
      for (int64_t o = 0; o < features; ++o) d += weight_of(ffn.down, o, j) * static_cast<Sum>(dy[o]);
      const auto [value, derivative] = activate(ffn.activation, half[0]);
      const Sum dhalf[2] = {weight * d * half[1] * derivative, weight * d * value};
      dot += value * half[1] * d;
      for (int64_t o = 0; o < features; ++o) {
        down[o * ffn.intermediate + j] += weight * value * half[1] * static_cast<Sum>(dy[o]);
      }
      for (int64_t part = 0; part < ffn.num_parts(); ++part) {
        const int64_t row = part * ffn.intermediate + j;
        gate_up_bias[row] += dhalf[part];
        for (int64_t i = 0; i < features; ++i) {
          dinput[i] += dhalf[part] * weight_of(ffn.gate_up, row, i);
          gate_up[row * features + i] += dhalf[part] * static_cast<Sum>(input[i]);
        }
      }
    }
    return dot;
  }

  void store(const FfnBranch<T>& ffn, int64_t features, const ExpertLinear<T>& to_gate_up,
             const ExpertLinear<T>& to_down) const {
    store_expert_linear(to_gate_up, gate_up, gate_up_bias, 1, ffn.num_parts() * ffn.intermediate, features);
    store_expert_linear(to_down, down, down_bias, 1, features, ffn.intermediate);
  }

 private:
  static Sum weight_of(const ExpertLinear<const T>& linear, int64_t out, int64_t in) {
    return static_cast<Sum>(linear.weight[out * linear.out_stride + in * linear.in_stride]);
  }
};

}  // namespace detail

/// Every gradient that is not null in `gradients` is written whole.
template <class T>
void gated_ffn_backward_reference(const GatedFfn<T>& problem, const T* dy, const GatedFfnGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t n = problem.features;
  detail::BranchSums<T> ffn(problem.ffn, n), other(problem.other, n);
  std::vector<Sum> dnorm_weight(n), dnorm_bias(n), dinput(n), dx(n);
  std::vector<T> normed(n);
  for (int64_t t = 0; t < problem.num_rows; ++t) {
    const int group = problem.widths.group_of(t);
    const bool runs = group < problem.widths.num_groups();
    const FfnBranch<T>& branch = runs ? problem.ffn : problem.other;
    const int64_t width = runs ? problem.widths.width_of_group(group) : branch.intermediate;
    const T *x = problem.x + t * n, *upstream = dy + t * n;
    const Sum scale = runs && problem.gate ? branch.scale * problem.gate[t] : branch.scale;
    Sum dot = 0;
    std::fill(dinput.begin(), dinput.end(), Sum(0));
    for (int64_t j = 0; j < n; ++j) dx[j] = problem.adds_x(runs) ? static_cast<Sum>(upstream[j]) : Sum(0);
    if (width > 0) {
      if (branch.normed) normalize_reference(problem.norm, n, x, normed.data());
      dot = (runs ? ffn : other)
                .add_row(branch, n, width, branch.normed ? normed.data() : x, upstream, scale, dinput.data());
      if (branch.normed) {
        normalize_backward_reference(problem.norm, n, x, dinput.data(), dx.data(), dnorm_weight.data(),
                                     dnorm_bias.data());
      } else {
        for (int64_t j = 0; j < n; ++j) dx[j] += dinput[j];
      }
    }
    if (gradients.gate) gradients.gate[t] = runs ? branch.scale * dot : Sum(0);
    for (int64_t j = 0; gradients.x && j < n; ++j) gradients.x[t * n + j] = T(dx[j]);
    for (int64_t j = 0; gradients.base && j < n; ++j) gradients.base[t * n + j] = runs ? T(0.0f) : upstream[j];
  }
  for (int64_t j = 0; gradients.norm_weight && j < n; ++j) gradients.norm_weight[j] = T(dnorm_weight[j]);
  for (int64_t j = 0; gradients.norm_bias && j < n; ++j) gradients.norm_bias[j] = T(dnorm_bias[j]);
  ffn.store(problem.ffn, n, gradients.gate_up, gradients.down);
  other.store(problem.other, n, gradients.other_gate_up, gradients.other_down);
}

}  // namespace anabranch
