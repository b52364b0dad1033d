// A feed-forward branch as a problem of the experts' kernels: rows in entry order, groups that differ in width or in
// weights, and a residual that the results are added to. The gated FFN has two of these, a low-rank residual one.
//
// Two launches forward: gate_up with the activation, down with the residual. Rows are read by item id, or compact from
// the normalised rows. Without rows every block leaves at once. On Hopper, for problems that expert_ffn_sm90_takes, the
// tensor-core kernels of branch_sm90.cuh, else expert_ffn.cuh's.
#pragma once

#include "anabranch/experts/expert_ffn.cuh"
#include "anabranch/experts/expert_ffn_sm90.hpp"
#include "anabranch/skip/gated_ffn.hpp"
#include "anabranch/skip/residual_store.cuh"

namespace anabranch {

template <class T>
struct BranchProblem {
  ExpertFfn<T> ffn;         // reads x by item_ids, or its normalised rows in entry order
  const int32_t* item_ids;  // of entries in x and y, or null: entry e is item e
  int64_t num_items, num_entries;
  int multiprocessors;  // of a Hopper GPU, if its kernels take the problem, else 0

  /// Rows of a tile, as the schedule must have them.
  int tile_rows() const {
    return multiprocessors > 0 ? choose_expert_ffn_sm90(num_entries, ffn.num_experts).tile_rows : detail::kGemmTile;
  }
  detail::RowTiles tiles(const int32_t* tile_offsets) const {
    return {tile_offsets,
            ffn.group_offsets,
            ffn.num_experts,
            num_entries,
            max_row_tiles(num_entries, ffn.num_experts, tile_rows()),
            tile_rows(),
            false};
  }
  /// Tiles of columns in which the dots of a ResidualStore are made.
  int64_t dot_parts() const {
    const int64_t columns = multiprocessors > 0 ? 256 : detail::kGemmTile;
    return (ffn.out_features + columns - 1) / columns;
  }
  bool is_empty() const { return num_entries == 0 || ffn.num_experts == 0 || ffn.intermediate == 0; }
};

/// normed: where the branch's normalised rows lie, if it has a norm. multiprocessors: of a Hopper GPU, else 0.
template <class T>
BranchProblem<T> branch_problem(const FfnBranch<T>& branch, const T* x, const T* normed, const int32_t* item_ids,
                                int64_t num_items, int64_t num_entries, int64_t features, const int32_t* group_offsets,
                                int64_t num_groups, int multiprocessors) {
  ExpertFfn<T> ffn{};
  ffn.x = branch.normed ? normed : x;
  ffn.item_ids = branch.normed ? nullptr : item_ids;
  ffn.num_items = branch.normed ? num_entries : num_items;
  ffn.gate_up = branch.gate_up;
  ffn.down = branch.down;
  ffn.group_offsets = group_offsets;
  ffn.num_experts = num_groups;
  ffn.in_features = ffn.out_features = features;
  ffn.intermediate = branch.intermediate;
  ffn.activation = branch.activation;
  ffn.gated = branch.gated;
  const bool hopper = multiprocessors > 0 && expert_ffn_sm90_takes(ffn, num_entries);
  return {ffn, item_ids, num_items, num_entries, hopper ? multiprocessors : 0};
}

/// The same with one matrix for all groups, whose strides between experts the kernels do not read.
template <class T>
FfnBranch<T> as_shared(FfnBranch<T> branch, int64_t features) {
  branch.gate_up.expert_stride = branch.num_parts() * branch.intermediate * branch.gate_up.out_stride;
  branch.down.expert_stride = features * branch.down.out_stride;
  return branch;
}

namespace detail {

/// Instantiated in csrc/skip/*_sm90.cu.
template <class T>
void branch_forward_sm90(const BranchProblem<T>& branch, const RowTiles& tiles, const ResidualStore<T>& to, T* hidden,
                         T* pre_activation, cudaStream_t stream);

/// hidden [num_entries, intermediate]; pre_activation [num_entries, parts * intermediate] or null.
template <class T>
void branch_forward_cuda(const BranchProblem<T>& branch, const RowTiles& tiles, const ResidualStore<T>& to, T* hidden,
                         T* pre_activation, cudaStream_t stream) {
  if (branch.is_empty()) return;
  if constexpr (is_16_bit<T>) {
    if (branch.multiprocessors > 0) return branch_forward_sm90(branch, tiles, to, hidden, pre_activation, stream);
  }
  gate_up_cuda(branch.ffn, tiles, hidden, pre_activation, stream);
  down_cuda(branch.ffn, tiles, hidden, to, stream);
}

}  // namespace detail

}  // namespace anabranch
