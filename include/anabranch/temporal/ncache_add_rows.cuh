// Gradients of the N-cache's read that go to rows of tables: a warp for each row that is named walks the slots in order
// (node_warp.cuh), one launch for each chunk of them. No float atomics.
#pragma once

#include "anabranch/temporal/ncache_read.cuh"
#include "anabranch/temporal/node_warp.cuh"

namespace anabranch::detail {

/// The gradient of a feature row by slot i: its gates' gradients times `width` columns of the weight from `offset` on.
template <class T>
struct NCacheFeatureRows {
  NCacheRead<T> problem;
  const accumulate_t<T>* dgates;
  const int64_t* ids;
  int64_t num_ids, width, offset;

  __device__ int64_t row(int64_t i) const { return problem.occupied(i) && ids[i] < num_ids ? ids[i] : -1; }
  __device__ accumulate_t<T> operator()(int64_t i, int64_t k) const {
    accumulate_t<T> sum = 0;
    for (int64_t gate = 0; gate < problem.gates(); ++gate) {
      sum += dgates[i * 4 * problem.state_size + gate] * problem.weight[gate * problem.width() + offset + k];
    }
    return sum;
  }
};

/// The gradient of a node's states by the row that was read of it.
template <class Sum>
struct NCacheStateRows {
  const Sum* dstates;
  const int64_t* nodes;
  int64_t num_nodes, width;

  __device__ int64_t row(int64_t i) const { return nodes[i] >= 0 && nodes[i] < num_nodes ? nodes[i] : -1; }
  __device__ Sum operator()(int64_t i, int64_t k) const { return dstates[i * width + k]; }
};

/// table[rows.row(i)] += rows(i, ...) for i in [begin, end), in order.
template <class Rows, class Sum>
__global__ void __launch_bounds__(kNCacheThreads, 1)
    ncache_add_rows_kernel(Rows rows, int64_t begin, int64_t end, Sum* table) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t position = begin + (static_cast<int64_t>(blockIdx.x) * kNCacheThreads + threadIdx.x) / 32;
  if (position >= end) return;
  const auto row_at = [&](int64_t i) { return rows.row(i); };
  const int64_t row = rows.row(position);
  if (row < 0 || !is_first_of_node(row_at, begin, position, row)) return;
  for_each_of_node(row_at, position, end, row, [&](int64_t i) {
    for (int64_t k = lane; k < rows.width; k += 32) table[row * rows.width + k] += rows(i, k);
  });
}

/// The same for [0, count), in launches of `chunk` slots.
template <class Rows, class Sum>
void ncache_add_rows(const Rows& rows, int64_t count, Sum* table, cudaStream_t stream, int64_t chunk) {
  if (!table || rows.width == 0) return;
  for (int64_t begin = 0; begin < count; begin += chunk) {
    const int64_t end = std::min(begin + chunk, count);
    launch(ncache_add_rows_kernel<Rows, Sum>, dim3(grid_of(((end - begin) * 32 + kNCacheThreads - 1) / kNCacheThreads)),
           dim3(kNCacheThreads), 0, stream, rows, begin, end, table);
  }
}

}  // namespace anabranch::detail
