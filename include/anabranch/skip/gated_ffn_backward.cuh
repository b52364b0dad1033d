// The gated FFN's backward on the GPU; the host reads nothing and its grids depend on sizes alone.
//
// 1. group_rows.cuh again: the groups, the normalised rows (cheaper to make than to keep), and all gradients of rows
//    that skip without weights.
// 2. branch_backward.cuh for rows that run. Groups share one matrix and are sorted by width, so features from one width
//    to the next have gradients from a prefix of the rows: one launch per width, zeros beyond the widest.
// 3. dgate: a warp per row adds up parts that the hidden features' kernel left. 4. norm_backward.cuh. 5. The branch of
//    rows that skip, if it has weights.
//
// Launches: 1, then for one width 4 to 6 of the branch, 1 for dgate, 1 to 3 for the norm; those of unwanted gradients
// are left out. FLOPs: twice the forward's. Bytes: the matrices twice and their gradients once; per row pre_activation,
// its gradient, weight * hidden, the gradient of the normalised row in T. Floor: as the forward's, twice.
#pragma once

#include "anabranch/skip/branch_backward.cuh"
#include "anabranch/skip/gated_ffn.cuh"
#include "anabranch/skip/gated_ffn_backward.hpp"
#include "anabranch/skip/norm_backward.cuh"

namespace anabranch {

/// What belongs to gradients that are not wanted may be null. Each part starts at a multiple of 16 bytes.
template <class T>
struct GatedFfnBackwardScratch {
  RowGroups groups;         // the forward's, made again
  int32_t* tables;          // gated_ffn_tables(widths)
  accumulate_t<T>* scales;  // [num_rows]
  T* normed;                // [num_rows, features], if a branch is normed
  T* weighted_hidden;       // [capacity, ffn.intermediate], for down.weight
  T* dpre_activation;       // [capacity, parts * ffn.intermediate], always
  T* other_weighted_hidden;
  T* other_dpre_activation;              // the same with num_rows for capacity
  accumulate_t<T>* partial_dots;         // [expert_ffn_dot_parts(ffn.intermediate), capacity], for gate
  T* dnormed;                            // [num_rows, features], if a branch is normed, for x and the norm's weights
  RowMoments<accumulate_t<T>>* moments;  // [num_rows], for the norm's weights
  accumulate_t<T>* norm_parts;           // norm_parts(num_rows, features), for the norm's weights
};

namespace detail {

/// Gradients of rows that skip: dx is left to the other branch if that has weights.
template <class T>
struct SkippedGradients {
  const T* dy;
  bool adds_x;
  int64_t features;
  T *dx, *dbase;  // or null

  template <int N>
  __device__ void operator()(int64_t item, bool runs, int lane) const {
    if (!dbase && (runs || !dx)) return;
    for_each_piece<N>(features, lane, [&](int64_t column) {
      const int64_t at = item * features + column;
      Vector<T, N> upstream{};
      const Vector<T, N> zeros{};
      if (!runs) upstream = Vector<T, N>::load(dy + at);
      if (dbase) upstream.store(dbase + at);
      if (dx && !runs) (adds_x ? upstream : zeros).store(dx + at);
    });
  }
};

}  // namespace detail

/// gated_ffn_backward_reference, up to rounding, for a problem that gated_ffn_cuda has run with the same capacity;
/// pre_activation and other_pre_activation are what that wrote. multiprocessors: of a Hopper GPU, else 0.
template <class T>
void gated_ffn_backward_cuda(const GatedFfn<T>& problem, int64_t capacity, const T* dy, const T* pre_activation,
                             const T* other_pre_activation, const GatedFfnBackwardScratch<T>& scratch,
                             const GatedFfnGradients<T>& gradients, int multiprocessors, cudaStream_t stream) {
  const auto writes = [&](const ExpertLinear<T>& gate_up, const ExpertLinear<T>& down) {
    return expert_ffn_sm90_writes(ExpertFfnGradients<T>{nullptr, gate_up, down, nullptr, nullptr});
  };
  const bool hopper = rows_are_aligned<T>(problem.features, {dy, pre_activation, other_pre_activation}) &&
                      writes(gradients.gate_up, gradients.down) &&
                      writes(gradients.other_gate_up, gradients.other_down);
  const detail::GatedFfnBranches<T> branches(problem, capacity, scratch.groups, scratch.tables, scratch.normed,
                                             scratch.scales, hopper ? multiprocessors : 0);
  const bool has_other = problem.other.intermediate > 0;
  const bool norm_weights = gradients.norm_weight || gradients.norm_bias;
  const detail::SkippedGradients<T> skipped{dy, problem.skipped_add_x, problem.features,
                                            has_other ? nullptr : gradients.x, gradients.base};
  detail::group_rows_cuda<T>({problem, capacity, 0, scratch.groups, branches.tables, scratch.scales, scratch.normed},
                             {dy, skipped.dx, skipped.dbase}, skipped, stream);

  detail::BranchBackward<T> backward{};
  backward.dy = dy;
  backward.dx.x = dy;
  backward.dx.item_ids = scratch.groups.item_ids;
  backward.dx.scale = 1;
  backward.dx.y = gradients.x;
  detail::BranchBackward<T> ffn = backward, other = backward;
  T* const dnormed = gradients.x || norm_weights ? scratch.dnormed : nullptr;
  ffn.pre_activation = pre_activation;
  ffn.weighted_hidden = gradients.down.weight ? scratch.weighted_hidden : nullptr;
  ffn.dpre_activation = scratch.dpre_activation;
  ffn.partial_dots = gradients.gate ? scratch.partial_dots : nullptr;
  ffn.normed = problem.ffn.normed;
  ffn.dnormed = dnormed;
  ffn.dx.adds_x = problem.running_add_x;
  ffn.gate_up = gradients.gate_up;
  ffn.down = gradients.down;
  detail::branch_backward_cuda(
      branches.ffn, branches.ffn_tiles(), ffn,
      detail::weight_groups_by_width(problem.widths, branches.tables.prefixes, problem.ffn.intermediate,
                                     branches.ffn.multiprocessors > 0 ? 8 : 1),
      stream);
  if (gradients.gate) {
    detail::weights_backward_cuda(
        branches.ffn.ffn, detail::upstream_of(branches.ffn, dy),
        {ffn.partial_dots, capacity, problem.num_rows, problem.ffn.scale, gradients.gate, scratch.groups.item_ids},
        stream);
  }
  if (has_other) {
    other.pre_activation = other_pre_activation;
    other.weighted_hidden = gradients.other_down.weight ? scratch.other_weighted_hidden : nullptr;
    other.dpre_activation = scratch.other_dpre_activation;
    other.normed = problem.other.normed;
    other.dnormed = dnormed;
    other.dx.adds_x = problem.skipped_add_x;
    other.gate_up = gradients.other_gate_up;
    other.down = gradients.other_down;
    detail::branch_backward_cuda(branches.other, branches.other_tiles(), other,
                                 {{branches.other.ffn.group_offsets, 1, {0, problem.other.intermediate}}}, stream);
  }
  const detail::NormBackward<T> norm{problem.norm,
                                     problem.x,
                                     dy,
                                     dnormed,
                                     scratch.groups.item_ids,
                                     scratch.groups.offsets + branches.tables.num_groups,
                                     problem.ffn.normed,
                                     has_other && problem.other.normed,
                                     problem.running_add_x,
                                     problem.skipped_add_x,
                                     problem.num_rows,
                                     problem.features,
                                     norm_weights ? scratch.moments : nullptr,
                                     scratch.norm_parts,
                                     gradients.x,
                                     gradients.norm_weight,
                                     gradients.norm_bias};
  norm_backward_cuda(norm, stream);
}

}  // namespace anabranch
