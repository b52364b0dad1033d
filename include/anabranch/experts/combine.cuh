// The last step of the expert FFN and of its data gradient: every item adds up the rows of its entries, in entry order.
//
// Layout and floor are those of plan/rows.cuh: a block is x threads along a row times y items, one thread writes each
// output element, nothing is atomic. Rows of experts' entries are kept as Row (the sums' own type, or narrower where a
// tensor-core kernel rounds them); an identity group's row is the item's own and is scaled by its own weight; a zero
// group's entries are skipped. Bytes: features * sizeof(Row) per expert entry, twice features * sizeof(T) per item.
#pragma once

#include "anabranch/core/vector.cuh"

namespace anabranch {

template <class T, class Row>
struct ExpertCombine {
  const Row* rows;                          // [capacity, features]: the entries of experts
  const accumulate_t<T>* weights;           // [capacity] for those rows, or null for 1
  const T* identity_rows;                   // [num_items, features]
  const accumulate_t<T>* identity_weights;  // [capacity] or null for 1
  const int32_t* group_offsets;             // the plan, of num_experts + num_zero + others (identity) groups
  const int32_t* item_offsets;              // the plan by item
  const int32_t* entry_ids;
  int64_t num_experts, num_zero, num_groups, num_items, capacity, features;
  T* out;  // [num_items, features]
};

namespace detail {

template <class T, class Row, int N>
__global__ void __launch_bounds__(256) expert_combine_kernel(ExpertCombine<T, Row> problem) {
  using Sum = accumulate_t<T>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (item >= problem.num_items) return;
  const int64_t features = problem.features, capacity = problem.capacity;
  const int64_t begin = problem.item_offsets[item] > 0 ? problem.item_offsets[item] : 0;
  const int64_t end = problem.item_offsets[item + 1] < capacity ? problem.item_offsets[item + 1] : capacity;
  const int32_t experts_end = problem.group_offsets[problem.num_experts];
  const int32_t zeros_end = problem.group_offsets[problem.num_experts + problem.num_zero];
  const int32_t num_entries = problem.group_offsets[problem.num_groups];
  for (int64_t column = int64_t{threadIdx.x} * N; column < features; column += int64_t{blockDim.x} * N) {
    Sum sum[N] = {};
#pragma unroll 4
    for (int64_t i = begin; i < end; ++i) {
      const int32_t entry = problem.entry_ids[i];
      if (entry < 0 || entry >= capacity || entry >= num_entries) continue;
      if (entry < experts_end) {
        const Sum weight = problem.weights ? problem.weights[entry] : Sum(1);
        const auto piece = Vector<Row, N>::load(problem.rows + entry * features + column);
        for (int k = 0; k < N; ++k) sum[k] += weight * static_cast<Sum>(piece.values[k]);
      } else if (entry >= zeros_end) {
        const Sum weight = problem.identity_weights ? problem.identity_weights[entry] : Sum(1);
        const auto piece = Vector<T, N>::load(problem.identity_rows + item * features + column);
        for (int k = 0; k < N; ++k) sum[k] += weight * static_cast<Sum>(piece.values[k]);
      }
    }
    Vector<T, N> result;
    for (int k = 0; k < N; ++k) result.values[k] = T(sum[k]);
    result.store(problem.out + item * features + column);
  }
}

}  // namespace detail

template <class T, class Row>
void expert_combine_cuda(const ExpertCombine<T, Row>& problem, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  if (problem.num_items == 0 || problem.features == 0) return;
  // N by the widest type, so that a piece of no row has more than 16 bytes.
  dispatch_vector_width<Sum>(problem.features, {problem.rows, problem.identity_rows, problem.out}, [&]<int N>() {
    const dim3 block = row_block(problem.features / N);
    launch(detail::expert_combine_kernel<T, Row, N>, row_grid(problem.num_items, block), block, 0, stream, problem);
  });
}

}  // namespace anabranch
