// The backward of a feed-forward branch on Hopper (branch_backward.cuh): the experts' kernels, with the input's
// gradient either in entry order, for the norm's backward, or added to its residual as the forward adds the down
// product (branch_sm90.cuh).
//
// The hidden features' kernel writes zeros from a row's width on, so weights' gradients may be summed over ranges that
// begin at the next multiple of 8.
#pragma once

#include "anabranch/experts/expert_ffn_backward_sm90.cuh"
#include "anabranch/skip/branch_backward.cuh"
#include "anabranch/skip/branch_sm90.cuh"

namespace anabranch::detail {

template <class T>
ExpertFfnBackwardSm90Workspace<T> workspace_of(const BranchBackward<T>& backward) {
  return {nullptr, backward.weighted_hidden, backward.dpre_activation, backward.partial_dots, nullptr};
}

template <class T, class Shape>
void branch_backward_sm90_shape(const BranchProblem<T>& branch, const RowTiles& tiles,
                                const BranchBackward<T>& backward, cudaStream_t stream) {
  hidden_backward_sm90<T, Shape>(branch.ffn, tiles, upstream_of(branch, backward.dy), backward.pre_activation,
                                 workspace_of(backward), branch.multiprocessors, stream);
  if (!backward.wants_input()) return;
  if (backward.normed) {
    RowsProblem<T, Shape, 2, true> input{};
    input.out = backward.dnormed;
    input_backward_sm90(input, branch.ffn, tiles, backward.dpre_activation, branch.multiprocessors, stream);
  } else {
    ResidualRowsProblem<T, Shape, 2, true> input{};
    input.to = backward.dx;
    input_backward_sm90(input, branch.ffn, tiles, backward.dpre_activation, branch.multiprocessors, stream);
  }
}

template <class T>
void branch_backward_sm90(const BranchProblem<T>& branch, const RowTiles& tiles, const BranchBackward<T>& backward,
                          cudaStream_t stream) {
  const auto run =
      tiles.tile_rows == 64 ? branch_backward_sm90_shape<T, Sm90Flat> : branch_backward_sm90_shape<T, Sm90Tall>;
  run(branch, tiles, backward, stream);
}

template <class T>
void branch_weights_backward_sm90(const BranchProblem<T>& branch, const ExpertFfn<T>& groups, const FeatureRange& range,
                                  const BranchBackward<T>& backward, const ExpertFfnGradients<T>& gradients,
                                  cudaStream_t stream) {
  expert_weights_backward_sm90(groups, branch.num_entries, upstream_of(branch, backward.dy), workspace_of(backward),
                               gradients, range, branch.multiprocessors, stream);
}

}  // namespace anabranch::detail
