// Low-rank residuals on the GPU (lowrank_residual.hpp defines them): the two products of a branch over groups that lie
// side by side and each have their own matrices.
//
// Forward, three launches: 1. the groups' tiles and, with a norm, the normalised rows, a warp each; 2. down to the rank
// with the activation; 3. up, with the residual. Backward: 1 again; the hidden features' and the input's gradients, one
// launch each; one per matrix; one to three for the norm.
//
// FLOPs: the definition's, the rank rounded up to 64 and each group's rows too: at rank 16 three quarters of the first
// product are padding. Bytes: every matrix once per 64 rows of its group, x two or three times, y, rank elements a row
// twice. Floor: bytes / bandwidth at small ranks. The portable kernels on every GPU: Hopper's take branches gated by
// silu alone, so from ranks of some hundreds on the CUDA cores are the limit.
#pragma once

#include "anabranch/skip/branch_backward.cuh"
#include "anabranch/skip/lowrank_residual.hpp"
#include "anabranch/skip/norm_backward.cuh"

namespace anabranch {

/// What is not needed may be null. Each part starts at a multiple of 16 bytes.
template <class T>
struct LowRankScratch {
  int32_t* tables;                       // lowrank_tables(num_groups)
  T* normed;                             // [rows, features], with a norm
  T* hidden;                             // [rows, rank]; backward: weighted, for down.weight
  T* dpre_activation;                    // [rows, rank], backward
  accumulate_t<T>* scales;               // [rows], backward
  T* dnormed;                            // [rows, features], backward with a norm, for x and the norm's weights
  RowMoments<accumulate_t<T>>* moments;  // [rows], for the norm's weights
  accumulate_t<T>* norm_parts;           // norm_parts(rows, features), for the norm's weights
};

/// int32 elements of LowRankScratch::tables.
inline int64_t lowrank_tables(int64_t num_groups) { return 2 * num_groups + 2; }

namespace detail {

/// A warp per row; the first block writes the tables.
template <class T, int N>
__global__ void __launch_bounds__(256, 1)
    equal_groups_kernel(LowRankResidual<T> problem, int32_t* offsets, int32_t* tile_offsets, int64_t tiles_per_group,
                        T* normed, accumulate_t<T>* scales) {
  if (blockIdx.x == 0) {
    const int64_t thread = threadIdx.y * 32 + threadIdx.x;
    for (int64_t g = thread; g <= problem.num_groups; g += 256) {
      offsets[g] = static_cast<int32_t>(g * problem.rows_per_group);
      tile_offsets[g] = static_cast<int32_t>(g * tiles_per_group);
    }
  }
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, n = problem.features;
  if (row >= problem.num_groups * problem.rows_per_group) return;
  const int lane = static_cast<int>(threadIdx.x);
  if (scales && lane == 0) scales[row] = problem.ffn.scale;
  if (problem.ffn.normed) normalize_row<N>(problem.norm, n, problem.x + row * n, normed + row * n, lane);
}

/// Launches equal_groups_kernel and says what the products are. The branch's tiles are at tables + num_groups + 1.
template <class T>
BranchProblem<T> lowrank_branch(const LowRankResidual<T>& problem, const LowRankScratch<T>& scratch,
                                cudaStream_t stream) {
  int32_t *const offsets = scratch.tables, *const tile_offsets = offsets + problem.num_groups + 1;
  const int64_t rows = problem.num_rows(), tiles = (problem.rows_per_group + kGemmTile - 1) / kGemmTile;
  const dim3 block(32, 8);
  dispatch_vector_width<T>(problem.features, {problem.x, problem.norm.weight, problem.norm.bias, scratch.normed},
                           [&]<int N>() {
                             launch(equal_groups_kernel<T, N>, row_grid(std::max<int64_t>(rows, 1), block), block, 0,
                                    stream, problem, offsets, tile_offsets, tiles, scratch.normed, scratch.scales);
                           });
  auto branch = branch_problem<T>(problem.ffn, problem.x, scratch.normed, nullptr, rows, rows, problem.features,
                                  offsets, problem.num_groups, 0);
  branch.ffn.weights = scratch.scales;
  return branch;
}

template <class T>
RowTiles lowrank_tiles(const BranchProblem<T>& branch, const LowRankScratch<T>& scratch) {
  return branch.tiles(scratch.tables + branch.ffn.num_experts + 1);
}

}  // namespace detail

/// lowrank_residual_reference, up to rounding. pre_activation [rows, rank] or null.
template <class T>
void lowrank_residual_cuda(const LowRankResidual<T>& problem, const LowRankScratch<T>& scratch, T* y, T* pre_activation,
                           cudaStream_t stream) {
  if (problem.num_rows() == 0) return;
  const auto branch = detail::lowrank_branch(problem, scratch, stream);
  detail::ResidualStore<T> to{};
  to.x = problem.adds_x ? problem.x : nullptr;
  to.adds_x = problem.adds_x;
  to.scale = problem.ffn.scale;
  to.y = y;
  detail::branch_forward_cuda(branch, detail::lowrank_tiles(branch, scratch), to, scratch.hidden, pre_activation,
                              stream);
}

/// lowrank_residual_backward_reference, up to rounding; pre_activation is the forward's.
template <class T>
void lowrank_residual_backward_cuda(const LowRankResidual<T>& problem, const T* dy, const T* pre_activation,
                                    const LowRankScratch<T>& scratch, const LowRankResidualGradients<T>& gradients,
                                    cudaStream_t stream) {
  const auto branch = detail::lowrank_branch(problem, scratch, stream);
  const bool norm_weights = gradients.norm_weight || gradients.norm_bias;
  detail::BranchBackward<T> backward{};
  backward.dy = dy;
  backward.pre_activation = pre_activation;
  backward.weighted_hidden = gradients.down.weight ? scratch.hidden : nullptr;
  backward.dpre_activation = scratch.dpre_activation;
  backward.normed = problem.ffn.normed;
  backward.dnormed = gradients.x || norm_weights ? scratch.dnormed : nullptr;
  backward.dx.x = dy;
  backward.dx.adds_x = problem.adds_x;
  backward.dx.scale = 1;
  backward.dx.y = gradients.x;
  backward.gate_up = gradients.gate_up;
  backward.down = gradients.down;
  detail::branch_backward_cuda(branch, detail::lowrank_tiles(branch, scratch), backward,
                               {{branch.ffn.group_offsets, problem.num_groups, {0, problem.ffn.intermediate}}}, stream);
  detail::NormBackward<T> norm{};
  norm.norm = problem.norm;
  norm.x = problem.x;
  norm.dy = dy;
  norm.dnormed = scratch.dnormed;
  norm.running_normed = problem.ffn.normed;
  norm.running_adds = problem.adds_x;
  norm.num_entries = problem.num_rows();
  norm.features = problem.features;
  norm.moments = norm_weights ? scratch.moments : nullptr;
  norm.parts = scratch.norm_parts;
  norm.dx = gradients.x;
  norm.dweight = gradients.norm_weight;
  norm.dbias = gradients.norm_bias;
  norm_backward_cuda(norm, stream);
}

}  // namespace anabranch
