// The backward of a feed-forward branch (branch.cuh), by the experts' kernels: the gradients of the hidden features, of
// what the branch read, and of its matrices.
//
// Launches: 1 for the hidden features, 1 for the input (with the residual, or into rows for the norm's backward), and
// for each of WeightGroups 1 per matrix (2 for gate and up on Hopper, unless the range is whole) and 1 per bias.
#pragma once

#include <vector>

#include "anabranch/experts/expert_ffn_backward.cuh"
#include "anabranch/skip/branch.cuh"

namespace anabranch::detail {

/// Rows whose outer products add up to the weights' gradients of some features: groups that each have own matrices, or
/// one group of all rows whose width reaches these features.
struct WeightGroups {
  const int32_t* row_offsets;  // [num_groups + 1], on the device
  int64_t num_groups;
  FeatureRange range;
};

/// Of a branch whose rows share one matrix and are sorted by width, widest first: row g of `prefixes` is 0 and the
/// number of rows in groups 0 .. g, the last is 0 and 0. The first of the result has all rows. Ranges begin at
/// multiples of `step`, which is more than 1 only where features beyond a row's width are zeros.
inline std::vector<WeightGroups> weight_groups_by_width(const FfnWidths& widths, const int32_t* prefixes,
                                                        int64_t intermediate, int64_t step) {
  std::vector<WeightGroups> out;
  const int num_groups = widths.num_groups();
  int64_t begin = 0;
  for (int g = num_groups - 1; g >= 0; --g) {
    const int64_t end = std::min((widths.width_of_group(g) + step - 1) / step * step, intermediate);
    if (end > begin) out.push_back({prefixes + 2 * g, 1, {begin, end}});
    begin = std::max(begin, end);
  }
  if (begin < intermediate) out.push_back({prefixes + 2 * num_groups, 1, {begin, intermediate}});
  return out;
}

/// What is not wanted is null.
template <class T>
struct BranchBackward {
  const T* dy;                    // [num_items, features]
  const T* pre_activation;        // the forward's
  T* weighted_hidden;             // [num_entries, intermediate], for down.weight
  T* dpre_activation;             // [num_entries, parts * intermediate], always
  accumulate_t<T>* partial_dots;  // [expert_ffn_dot_parts(intermediate), num_entries], for the entries' weights
  bool normed;
  T* dnormed;           // [num_entries, features], of normed rows: their input's gradient
  ResidualStore<T> dx;  // of other rows: where it goes
  ExpertLinear<T> gate_up, down;

  bool wants_input() const { return normed ? dnormed != nullptr : dx.y != nullptr; }
  bool wants_weights() const { return gate_up.weight || gate_up.bias || down.weight || down.bias; }
  ExpertFfnGradients<T> gradients(bool with_down_bias) const {
    ExpertFfnGradients<T> out{nullptr, gate_up, down, nullptr, nullptr};
    if (!with_down_bias) out.down.bias = nullptr;
    return out;
  }
};

/// Instantiated in csrc/skip/*_sm90.cu: the first two launches, and the weights' gradients of some features.
template <class T>
void branch_backward_sm90(const BranchProblem<T>& branch, const RowTiles& tiles, const BranchBackward<T>& backward,
                          cudaStream_t stream);
template <class T>
void branch_weights_backward_sm90(const BranchProblem<T>& branch, const ExpertFfn<T>& groups, const FeatureRange& range,
                                  const BranchBackward<T>& backward, const ExpertFfnGradients<T>& gradients,
                                  cudaStream_t stream);

template <class T>
Upstream<T> upstream_of(const BranchProblem<T>& branch, const T* dy) {
  return {dy, branch.item_ids, branch.num_items};
}

/// The sums of `groups` alone: each group an expert of its own, as wide as they say.
template <class T>
void branch_weights_backward_cuda(const BranchProblem<T>& branch, const WeightGroups& groups,
                                  const BranchBackward<T>& backward, bool with_down_bias, cudaStream_t stream) {
  ExpertFfn<T> ffn = branch.ffn;
  ffn.group_offsets = groups.row_offsets;
  ffn.num_experts = groups.num_groups;
  ffn.widths = nullptr;
  ffn.shared = false;
  const ExpertFfnGradients<T> gradients = backward.gradients(with_down_bias);
  if constexpr (is_16_bit<T>) {
    if (branch.multiprocessors > 0)
      return branch_weights_backward_sm90(branch, ffn, groups.range, backward, gradients, stream);
  }
  expert_weights_backward_cuda(
      ffn, branch.num_entries, upstream_of(branch, backward.dy),
      {nullptr, backward.weighted_hidden, backward.dpre_activation, backward.partial_dots, nullptr}, gradients,
      groups.range, stream);
}

template <class T>
void branch_backward_cuda(const BranchProblem<T>& branch, const RowTiles& tiles, const BranchBackward<T>& backward,
                          const std::vector<WeightGroups>& weights, cudaStream_t stream) {
  const auto run_rows = [&] {
    if constexpr (is_16_bit<T>) {
      if (branch.multiprocessors > 0) return branch_backward_sm90(branch, tiles, backward, stream);
    }
    hidden_backward_cuda(branch.ffn, tiles, upstream_of(branch, backward.dy), backward.pre_activation,
                         {nullptr, backward.weighted_hidden, backward.dpre_activation, backward.partial_dots, nullptr},
                         stream);
    if (!backward.wants_input()) return;
    backward.normed
        ? input_backward_cuda(branch.ffn, tiles, backward.dpre_activation, PlainStore<T>{backward.dnormed}, stream)
        : input_backward_cuda(branch.ffn, tiles, backward.dpre_activation, backward.dx, stream);
  };
  if (!branch.is_empty()) run_rows();
  for (size_t i = 0; backward.wants_weights() && i < weights.size(); ++i)
    branch_weights_backward_cuda(branch, weights[i], backward, i == 0, stream);
}

}  // namespace anabranch::detail
