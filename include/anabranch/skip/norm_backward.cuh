// The gradient of the norm before a branch (row_norm.hpp), and of what a residual passes on around it.
//
// 1. dx: a warp per row, which finds the row's moments again and keeps them.
// 2. dweight and dbias: sums over 256 rows in order, 32 columns by 8 threads each; 3. the sums of these, in order.
//
// Bytes: dnormed, x and dy read and dx written; for the weights dnormed and x once more. Three launches, one without
// gradients of weights. Floor: bytes / bandwidth. No atomics: every sum has one order.
#pragma once

#include "anabranch/skip/row_norm.cuh"

namespace anabranch {

namespace detail {

/// Rows by entry, of which the first num_running run and the others skip.
template <class T>
struct NormBackward {
  RowNorm<T> norm;
  const T* x;                             // [num_items, features]
  const T* dy;                            // the same
  const T* dnormed;                       // [num_entries, features]
  const int32_t *item_ids, *num_running;  // null: entry e is item e; all run
  bool running_normed, skipped_normed;    // rows without a norm are left alone
  bool running_adds, skipped_adds;        // dy to dx
  int64_t num_entries, features;
  RowMoments<accumulate_t<T>>* moments;  // [num_entries], for weights; or null
  accumulate_t<T>* parts;                // norm_parts(num_entries, features), for weights
  T *dx, *dweight, *dbias;               // or null

  __device__ int64_t item(int64_t entry) const { return item_ids ? item_ids[entry] : entry; }
  __device__ bool runs(int64_t entry) const { return !num_running || entry < *num_running; }
  __device__ bool is_normed(int64_t entry) const { return runs(entry) ? running_normed : skipped_normed; }
  bool has_norm() const { return running_normed || skipped_normed; }
};

inline constexpr int kNormRows = 256, kNormLanes = 8;

template <class T, int N>
__global__ void __launch_bounds__(256, 1) norm_backward_kernel(NormBackward<T> problem) {
  using Sum = accumulate_t<T>;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, n = problem.features;
  const int lane = static_cast<int>(threadIdx.x);
  if (entry >= problem.num_entries || !problem.is_normed(entry)) return;
  const int64_t at = problem.item(entry) * n;
  const T *x = problem.x + at, *dnormed = problem.dnormed + entry * n;
  const bool is_layer = problem.norm.kind == NormKind::layer;
  const bool adds = problem.runs(entry) ? problem.running_adds : problem.skipped_adds;
  const auto moments = row_moments<N>(problem.norm, n, x, lane);
  if (problem.moments && lane == 0) problem.moments[entry] = moments;
  if (!problem.dx) return;
  Sum mean_gradient = 0, mean_product = 0;
  for_each_piece<N>(n, lane, [&](int64_t column) {
    const auto values = Vector<T, N>::load(x + column), upstream = Vector<T, N>::load(dnormed + column);
    const auto weights = norm_piece<N>(problem.norm.weight, column, 1);
    for (int k = 0; k < N; ++k) {
      const Sum gradient = static_cast<Sum>(upstream.values[k]) * static_cast<Sum>(weights.values[k]);
      mean_gradient += gradient;
      mean_product += gradient * (static_cast<Sum>(values.values[k]) - moments.mean) * moments.scale;
    }
  });
  mean_gradient = is_layer ? warp_sum(mean_gradient) / static_cast<Sum>(n) : Sum(0);
  mean_product = warp_sum(mean_product) / static_cast<Sum>(n);
  for_each_piece<N>(n, lane, [&](int64_t column) {
    const auto values = Vector<T, N>::load(x + column), upstream = Vector<T, N>::load(dnormed + column);
    const auto weights = norm_piece<N>(problem.norm.weight, column, 1);
    Vector<T, N> passed{};
    if (adds) passed = Vector<T, N>::load(problem.dy + at + column);
    for (int k = 0; k < N; ++k) {
      const Sum gradient = static_cast<Sum>(upstream.values[k]) * static_cast<Sum>(weights.values[k]);
      const Sum centred = (static_cast<Sum>(values.values[k]) - moments.mean) * moments.scale;
      passed.values[k] =
          T(static_cast<Sum>(passed.values[k]) + moments.scale * (gradient - mean_gradient - centred * mean_product));
    }
    passed.store(problem.dx + at + column);
  });
}

/// parts[chunk] = sums over the chunk's normed rows of dnormed * centred, and of dnormed.
template <class T>
__global__ void __launch_bounds__(32 * kNormLanes) norm_parts_kernel(NormBackward<T> problem) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const SharedArray<Sum> weights = shared.take<Sum>(32 * kNormLanes), biases = shared.take<Sum>(32 * kNormLanes);
  const int64_t strips = (problem.features + 31) / 32, chunk = blockIdx.x / strips, n = problem.features;
  const int64_t column = blockIdx.x % strips * 32 + threadIdx.x;
  const int64_t end = (chunk + 1) * kNormRows < problem.num_entries ? (chunk + 1) * kNormRows : problem.num_entries;
  Sum weight = 0, bias = 0;
  for (int64_t entry = chunk * kNormRows + threadIdx.y; column < n && entry < end; entry += kNormLanes) {
    if (!problem.is_normed(entry)) continue;
    const auto moments = problem.moments[entry];
    const Sum value = static_cast<Sum>(problem.x[problem.item(entry) * n + column]);
    const Sum upstream = static_cast<Sum>(problem.dnormed[entry * n + column]);
    weight += upstream * (value - moments.mean) * moments.scale;
    bias += upstream;
  }
  weights[threadIdx.y * 32 + threadIdx.x] = weight;
  biases[threadIdx.y * 32 + threadIdx.x] = bias;
  __syncthreads();
  if (threadIdx.y != 0 || column >= n) return;
  for (int y = 1; y < kNormLanes; ++y) {
    const Sum other_weight = weights[y * 32 + threadIdx.x], other_bias = biases[y * 32 + threadIdx.x];
    weight += other_weight, bias += other_bias;
  }
  problem.parts[chunk * 2 * n + column] = weight;
  problem.parts[(chunk * 2 + 1) * n + column] = bias;
}

template <class T>
__global__ void __launch_bounds__(256) norm_weights_kernel(NormBackward<T> problem, int64_t num_chunks) {
  using Sum = accumulate_t<T>;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, n = problem.features;
  if (column >= n) return;
  Sum weight = 0, bias = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    weight += problem.parts[chunk * 2 * n + column];
    bias += problem.parts[(chunk * 2 + 1) * n + column];
  }
  if (problem.dweight) problem.dweight[column] = T(weight);
  if (problem.dbias) problem.dbias[column] = T(bias);
}

}  // namespace detail

/// Elements of NormBackward::parts.
inline int64_t norm_parts(int64_t num_entries, int64_t features) {
  return (num_entries + detail::kNormRows - 1) / detail::kNormRows * 2 * features;
}

/// normalize_backward_reference for every normed entry, up to the order of sums, and dx whole for their items.
template <class T>
void norm_backward_cuda(const detail::NormBackward<T>& problem, cudaStream_t stream) {
  const bool weights = problem.dweight || problem.dbias, rows = problem.has_norm() && problem.num_entries > 0;
  if (rows && (weights || problem.dx)) {
    dispatch_vector_width<T>(
        problem.features, {problem.x, problem.dy, problem.dnormed, problem.norm.weight, problem.dx}, [&]<int N>() {
          const dim3 block(32, 8);
          launch(detail::norm_backward_kernel<T, N>, row_grid(problem.num_entries, block), block, 0, stream, problem);
        });
  }
  if (!weights) return;
  using Sum = accumulate_t<T>;
  const int64_t chunks = rows ? (problem.num_entries + detail::kNormRows - 1) / detail::kNormRows : 0;
  const int lanes = 32 * detail::kNormLanes;
  if (chunks > 0) {
    launch(detail::norm_parts_kernel<T>, grid_of(chunks * ((problem.features + 31) / 32)), dim3(32, detail::kNormLanes),
           shared_bytes<Sum, Sum>(lanes, lanes), stream, problem);
  }
  launch(detail::norm_weights_kernel<T>, grid_of((problem.features + 255) / 256), 256, 0, stream, problem, chunks);
}

}  // namespace anabranch
