// Low-rank residuals on the CPU: the gated FFN's passes over groups that lie side by side and each have own matrices.
#pragma once

#include "anabranch/skip/gated_ffn_backward_cpu.hpp"
#include "anabranch/skip/lowrank_residual.hpp"

namespace anabranch {

namespace detail {

template <class T>
BranchRows<T> lowrank_rows(const LowRankResidual<T>& problem) {
  std::vector<int32_t> offsets(problem.num_groups + 1);
  for (int64_t g = 0; g <= problem.num_groups; ++g) offsets[g] = static_cast<int32_t>(g * problem.rows_per_group);
  return {problem.x, problem.num_rows(), problem.features, problem.norm, problem.ffn, std::move(offsets), nullptr, {},
          false};
}

}  // namespace detail

/// lowrank_residual_reference, up to rounding. pre_activation [rows, parts * intermediate] or null.
template <class T>
void lowrank_residual_cpu(const LowRankResidual<T>& problem, T* y, T* pre_activation) {
  const T* const x = problem.adds_x ? problem.x : nullptr;
  detail::branch_forward(detail::lowrank_rows(problem), detail::Residual<T>{x, nullptr, nullptr, problem.ffn.scale},
                         detail::strided_products, y, static_cast<accumulate_t<T>*>(nullptr), pre_activation);
}

/// lowrank_residual_backward_reference, up to rounding; pre_activation is the forward's.
template <class T>
void lowrank_residual_backward_cpu(const LowRankResidual<T>& problem, const T* dy, const T* pre_activation,
                                   const LowRankResidualGradients<T>& gradients) {
  const int64_t n = problem.features;
  const bool norm = gradients.norm_weight || gradients.norm_bias;
  detail::NormSums<T> norm_sums(n);
  detail::branch_backward(
      detail::lowrank_rows(problem), detail::Residual<T>{nullptr, nullptr, nullptr, problem.ffn.scale}, problem.norm,
      problem.ffn.normed, dy, problem.adds_x ? dy : nullptr, pre_activation,
      detail::BranchGradients<T>{gradients.x, gradients.gate_up, gradients.down, nullptr, norm}, norm_sums);
  for (int64_t j = 0; gradients.norm_weight && j < n; ++j) gradients.norm_weight[j] = T(norm_sums.weight[j]);
  for (int64_t j = 0; gradients.norm_bias && j < n; ++j) gradients.norm_bias[j] = T(norm_sums.bias[j]);
}

}  // namespace anabranch
