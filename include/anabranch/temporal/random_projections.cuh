// Random projections (random_projections.hpp defines them) on the GPU: a launch for each level, the last one first,
// because a level reads the one below as it was before the batch; then one that moves last_time on. In each, the warp
// of a node's first position of the whole batch does the node, lanes over columns.
//
// Bytes: the definition's, and the batch's ids from L2: (2E)^2 / 64 loads of 32 lanes a launch, fit for batches up to
// some ten thousand events. Floor: launches, L of them, for the usual batches of hundreds.
#pragma once

#include "anabranch/temporal/ordered_scatter.cuh"
#include "anabranch/temporal/random_projections.hpp"

namespace anabranch {

namespace detail {

template <class T, int K>
__global__ void __launch_bounds__(32 * kScatterWarps, 1)
    random_projections_level_kernel(RandomProjections<T> problem, int64_t level) {
  using Sum = accumulate_t<T>;
  const int64_t positions = problem.positions(), position = warp_position(0, positions), dim = problem.dim;
  if (position == positions) return;
  const auto node_at = [&](int64_t p) { return problem.node(p); };
  const int64_t node = node_at(position);
  if (node == no_node || !is_first_of_node(node_at, 0, position, node)) return;
  const Sum fade = Sum(problem.power(problem.fade_since(problem.last_time[node]), level));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T* row = problem.row(node, level);
  for (int64_t from = lane; from < (dim + 31) / 32 * 32; from += 32 * K) {
    Sum sums[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t c = from + 32 * k;
      sums[k] = c < dim ? rounded_product(fade, static_cast<Sum>(row[c])) : Sum(0);
    }
    for_each_of_node(node_at, position, positions, node, [&](int64_t p) {
      const int64_t other = problem.other(p);
      const Sum weight = Sum(problem.fade_since(problem.time[p / 2]));
      const Sum other_fade = Sum(problem.power(problem.fade_since(problem.last_time[other]), level - 1));
      const T* other_row = problem.row(other, level - 1);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t c = from + 32 * k;
        if (c < dim) {
          sums[k] += rounded_product(weight, rounded_product(other_fade, static_cast<Sum>(other_row[c])));
        }
      }
    });
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t c = from + 32 * k;
      if (c < dim) row[c] = T(sums[k]);
    }
  }
}

/// Every position of a node writes the same number.
template <class T>
__global__ void __launch_bounds__(256, 1) random_projections_time_kernel(RandomProjections<T> problem) {
  const int64_t position = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (position >= problem.positions()) return;
  const int64_t node = problem.node(position);
  if (node != no_node && problem.last_time[node] < *problem.now) problem.last_time[node] = *problem.now;
}

}  // namespace detail

/// random_projections_update_reference, up to the exponential's rounding.
template <class T>
void random_projections_update_cuda(const RandomProjections<T>& problem, cudaStream_t stream) {
  if (problem.events == 0) return;
  const auto kernel =
      problem.dim <= 64 ? detail::random_projections_level_kernel<T, 2> : detail::random_projections_level_kernel<T, 8>;
  for (int64_t level = problem.levels - 1; level >= 1; --level) {
    launch(kernel, detail::scatter_grid(problem.positions()), dim3(32 * detail::kScatterWarps), 0, stream, problem,
           level);
  }
  launch(detail::random_projections_time_kernel<T>, dim3(grid_of((problem.positions() + 255) / 256)), dim3(256), 0,
         stream, problem);
}

}  // namespace anabranch
