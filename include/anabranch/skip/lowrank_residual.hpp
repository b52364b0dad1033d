// Low-rank residuals of many layers or adapters at once: y = x + scale * up @ act(down @ norm(x)), each group of rows
// with its own two matrices; or the branch alone, without x. What it computes, and its plain-loop definition.
//
// Group g is the rows g * rows_per_group .. (g + 1) * rows_per_group of x. `ffn` holds the matrices: gate_up is the
// down-projection to the rank, down the up-projection back; usually without `gated`.
// FLOPs: 4 * rows * features * rank. Bytes: every matrix once, x and y once. Floor: bytes / bandwidth at small ranks.
#pragma once

#include <algorithm>
#include <vector>

#include "anabranch/skip/gated_ffn_backward.hpp"

namespace anabranch {

template <class T>
struct LowRankResidual {
  const T* x;  // [num_groups * rows_per_group, features]
  int64_t num_groups, rows_per_group, features;
  RowNorm<T> norm;
  FfnBranch<T> ffn;  // matrices of group g at g * expert_stride
  bool adds_x;

  int64_t num_rows() const { return num_groups * rows_per_group; }
  /// The branch of one group.
  FfnBranch<T> branch(int64_t group) const {
    FfnBranch<T> own = ffn;
    own.gate_up.weight += group * ffn.gate_up.expert_stride;
    own.down.weight += group * ffn.down.expert_stride;
    if (own.gate_up.bias) own.gate_up.bias += group * ffn.num_parts() * ffn.intermediate;
    if (own.down.bias) own.down.bias += group * features;
    return own;
  }
};

/// Gradients to write; null where not wanted.
template <class T>
struct LowRankResidualGradients {
  T* x;
  T *norm_weight, *norm_bias;
  ExpertLinear<T> gate_up, down;
};

template <class T>
void lowrank_residual_reference(const LowRankResidual<T>& problem, T* y) {
  using Sum = accumulate_t<T>;
  const int64_t n = problem.features;
  std::vector<Sum> sum(n);
  std::vector<T> normed(n);
  for (int64_t t = 0; t < problem.num_rows(); ++t) {
    const FfnBranch<T> own = problem.branch(t / problem.rows_per_group);
    const T* x = problem.x + t * n;
    for (int64_t j = 0; j < n; ++j) sum[j] = problem.adds_x ? static_cast<Sum>(x[j]) : Sum(0);
    if (own.normed) normalize_reference(problem.norm, n, x, normed.data());
    detail::ffn_row_reference(own, n, own.intermediate, own.normed ? normed.data() : x, own.scale, sum.data());
    for (int64_t j = 0; j < n; ++j) y[t * n + j] = T(sum[j]);
  }
}

/// The gradients are those of one gated FFN per group; every one that is not null is written whole.
template <class T>
void lowrank_residual_backward_reference(const LowRankResidual<T>& problem, const T* dy,
                                         const LowRankResidualGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t n = problem.features, inner = problem.ffn.intermediate, parts = problem.ffn.num_parts();
  std::vector<Sum> dnorm_weight(n), dnorm_bias(n), dinput(n), dx(n);
  std::vector<T> normed(n);
  for (int64_t g = 0; g < problem.num_groups; ++g) {
    const FfnBranch<T> own = problem.branch(g);
    detail::BranchSums<T> sums(own, n);
    for (int64_t t = g * problem.rows_per_group; t < (g + 1) * problem.rows_per_group; ++t) {
      const T *x = problem.x + t * n, *upstream = dy + t * n;
      std::fill(dinput.begin(), dinput.end(), Sum(0));
      for (int64_t j = 0; j < n; ++j) dx[j] = problem.adds_x ? static_cast<Sum>(upstream[j]) : Sum(0);
      if (own.normed) normalize_reference(problem.norm, n, x, normed.data());
      sums.add_row(own, n, inner, own.normed ? normed.data() : x, upstream, own.scale, dinput.data());
      if (own.normed) {
        normalize_backward_reference(problem.norm, n, x, dinput.data(), dx.data(), dnorm_weight.data(),
                                     dnorm_bias.data());
      } else {
        for (int64_t j = 0; j < n; ++j) dx[j] += dinput[j];
      }
      for (int64_t j = 0; gradients.x && j < n; ++j) gradients.x[t * n + j] = T(dx[j]);
    }
    ExpertLinear<T> gate_up = gradients.gate_up, down = gradients.down;
    if (gate_up.weight) gate_up.weight += g * gate_up.expert_stride;
    if (gate_up.bias) gate_up.bias += g * parts * inner;
    if (down.weight) down.weight += g * down.expert_stride;
    if (down.bias) down.bias += g * n;
    sums.store(own, n, gate_up, down);
  }
  for (int64_t j = 0; gradients.norm_weight && j < n; ++j) gradients.norm_weight[j] = T(dnorm_weight[j]);
  for (int64_t j = 0; gradients.norm_bias && j < n; ++j) gradients.norm_bias[j] = T(dnorm_bias[j]);
}

}  // namespace anabranch
