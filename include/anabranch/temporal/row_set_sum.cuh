// Sums over sets of two rows of a graph (row_intersect.hpp defines them) on the GPU.
//
// Sum: a warp for each pair; what row_intersect.cuh finds is visited in ascending order, so sums have the bits of the
// definition. All lanes share the columns of one row of x after the other, 128 at a time; wider rows walk again. Bytes:
// 8 for each element of the driver, size * width * sizeof(T) of x, and with weights one of them an element.
//
// The backward to x has a warp for each node, which asks 32 pairs at a time whether their sets hold it and adds their
// rows of dout in order: nodes * pairs bisections of two rows, all from the second cache; no atomics. With weights the
// samples are written first, pairs * capacity ids, and it is these rows that are bisected: the place of the node is
// that of its weight. The backward to weights reads them too, a warp for each pair and its lanes side by side along x.
#pragma once

#include "anabranch/temporal/row_intersect.cuh"

namespace anabranch {

namespace detail {

inline constexpr int kRowSetColumns = 4;  // of a lane

/// Sums of a lane's columns, first + 32 k.
template <class T>
struct ColumnSums {
  using Sum = accumulate_t<T>;
  int64_t first, width;
  Sum sums[kRowSetColumns] = {};

  __device__ ColumnSums(int64_t width_) : first(blockIdx.y * 32 * kRowSetColumns + threadIdx.x % 32), width(width_) {}

  template <bool weighted = false>
  __device__ void add(const T* row, Sum weight = Sum(1)) {
#pragma unroll
    for (int k = 0; k < kRowSetColumns; ++k) {
      if (first + 32 * k >= width) continue;
      const Sum value = static_cast<Sum>(row[first + 32 * k]);
      sums[k] += weighted ? weight * value : value;
    }
  }
  __device__ void store(T* row) const {
#pragma unroll
    for (int k = 0; k < kRowSetColumns; ++k) {
      if (first + 32 * k < width) row[first + 32 * k] = T(sums[k]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_sum_kernel(RowPairs problem, const T* x, int64_t width, T* out) {
  const int64_t pair = row_set_warp();
  if (pair >= problem.pairs) return;
  ColumnSums<T> sums(width);
  walk_row_set(problem, pair, [&](int64_t id, bool in_set) {
    for (unsigned rest = __ballot_sync(kAllLanes, in_set); rest != 0; rest &= rest - 1) {
      sums.add(x + __shfl_sync(kAllLanes, id, __ffs(static_cast<int>(rest)) - 1) * width);
    }
  });
  sums.store(out + pair * width);
}

template <class T>
__global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_weighted_sum_kernel(RowPairs problem, RowSetWeights<T> weights, const T* x, int64_t width, T* out) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const SharedArray<int> counts = shared.take<int>(kRowSetThreads / 32 * 256);
  const int64_t pair = row_set_warp();
  if (pair >= problem.pairs) return;
  ColumnSums<T> sums(width);
  const T* weight = weights.of_pair(pair);
  walk_row_sample(problem, pair, weights.capacity, weights.seed, counts, [&](int64_t id, bool kept) {
    for (unsigned rest = __ballot_sync(kAllLanes, kept); rest != 0; rest &= rest - 1) {
      const T* row = x + __shfl_sync(kAllLanes, id, __ffs(static_cast<int>(rest)) - 1) * width;
      sums.template add<true>(row, static_cast<Sum>(*weight++));
    }
  });
  sums.store(out + pair * width);
}

/// add(pair, place) in order for the pairs whose place, as place_of(pair) gives it to one lane each, is not negative.
template <class Place, class Add>
__device__ void for_pairs_of_node(int64_t pairs, Place&& place_of, Add&& add) {
  const int64_t lane = threadIdx.x % 32;
  for (int64_t base = 0; base < pairs; base += 32) {
    const int64_t place = base + lane < pairs ? place_of(base + lane) : -1;
    for (unsigned rest = __ballot_sync(kAllLanes, place >= 0); rest != 0; rest &= rest - 1) {
      const int from = __ffs(static_cast<int>(rest)) - 1;
      add(base + from, __shfl_sync(kAllLanes, place, from));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_sum_backward_kernel(RowPairs problem, const T* dout, int64_t width, T* dx) {
  const int64_t node = row_set_warp();
  if (node >= problem.nodes) return;
  const bool common = problem.mode == RowSetMode::intersection;
  ColumnSums<T> sums(width);
  const auto place_of = [&](int64_t pair) {
    if (!problem.admits(pair, node)) return int64_t{-1};
    const auto rows = problem.rows(pair);
    const int64_t place = place_in_row(rows.driver, node);
    return place >= 0 && (place_in_row(rows.other, node) >= 0) == common ? place : int64_t{-1};
  };
  for_pairs_of_node(problem.pairs, place_of, [&](int64_t pair, int64_t) { sums.add(dout + pair * width); });
  sums.store(dx + node * width);
}

/// The sample of a pair, as row_set writes it.
__device__ inline GraphRow row_sample(const int64_t* ids, const int64_t* sizes, int64_t capacity, int64_t pair) {
  const int64_t size = sizes[pair];
  return {ids + pair * capacity, size < capacity ? size : capacity};
}

template <class T>
__global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_weighted_sum_backward_kernel(RowPairs problem, RowSetWeights<T> weights, const int64_t* ids,
                                         const int64_t* sizes, const T* dout, int64_t width, T* dx) {
  const int64_t node = row_set_warp(), capacity = weights.capacity;
  if (node >= problem.nodes) return;
  ColumnSums<T> sums(width);
  const auto place_of = [&](int64_t pair) { return place_in_row(row_sample(ids, sizes, capacity, pair), node); };
  for_pairs_of_node(problem.pairs, place_of, [&](int64_t pair, int64_t place) {
    sums.template add<true>(dout + pair * width, static_cast<accumulate_t<T>>(weights.of_pair(pair)[place]));
  });
  sums.store(dx + node * width);
}

template <class T>
__global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_dot_kernel(int64_t pairs, const int64_t* ids, const int64_t* sizes, int64_t capacity, const T* dout,
                       const T* x, int64_t width, T* out) {
  using Sum = accumulate_t<T>;
  const int64_t pair = row_set_warp(), lane = threadIdx.x % 32;
  if (pair >= pairs) return;
  const GraphRow sample = row_sample(ids, sizes, capacity, pair);
  for (int64_t k = 0; k < sample.size; ++k) {
    const T* row = x + sample.ids[k] * width;
    Sum sum = 0;
    for (int64_t column = lane; column < width; column += 32) {
      sum += static_cast<Sum>(dout[pair * width + column]) * static_cast<Sum>(row[column]);
    }
    sum = warp_sum(sum);
    if (lane == 0) out[pair * capacity + k] = T(sum);
  }
  for (int64_t k = sample.size + lane; k < capacity; k += 32) out[pair * capacity + k] = T(Sum(0));
}

inline dim3 row_set_grid(int64_t warps, int64_t width) {
  constexpr int64_t columns = 32 * kRowSetColumns;
  return dim3(row_set_blocks(warps), static_cast<unsigned>((width + columns - 1) / columns));
}

}  // namespace detail

/// Ids [pairs, capacity] and sizes [pairs] that the backwards of weighted sums write and read.
struct RowSetScratch {
  int64_t *ids = nullptr, *sizes = nullptr;
};

/// row_set_sum_reference, to the bit but for fused multiplications. width is at most 128 * 65535.
template <class T>
void row_set_sum_cuda(const RowPairs& problem, const RowSetWeights<T>& weights, const T* x, int64_t width, T* out,
                      cudaStream_t stream) {
  if (problem.pairs * width == 0) return;
  const dim3 grid = detail::row_set_grid(problem.pairs, width);
  if (!weights.given) {
    launch(detail::row_set_sum_kernel<T>, grid, detail::kRowSetThreads, 0, stream, problem, x, width, out);
  } else {
    launch(detail::row_set_weighted_sum_kernel<T>, grid, detail::kRowSetThreads, detail::row_set_counts_bytes(), stream,
           problem, weights, x, width, out);
  }
}

/// row_set_sum_backward_reference, as exactly; scratch where there are weights.
template <class T>
void row_set_sum_backward_cuda(const RowPairs& problem, const RowSetWeights<T>& weights, const T* dout, int64_t width,
                               T* dx, const RowSetScratch& scratch, cudaStream_t stream) {
  if (problem.nodes * width == 0) return;
  const dim3 grid = detail::row_set_grid(problem.nodes, width);
  if (!weights.given) {
    launch(detail::row_set_sum_backward_kernel<T>, grid, detail::kRowSetThreads, 0, stream, problem, dout, width, dx);
  } else {
    row_set_cuda(problem, weights.capacity, weights.seed, scratch.ids, scratch.sizes, stream);
    launch(detail::row_set_weighted_sum_backward_kernel<T>, grid, detail::kRowSetThreads, 0, stream, problem, weights,
           scratch.ids, scratch.sizes, dout, width, dx);
  }
}

/// row_set_dot_reference, up to the order of a sum.
template <class T>
void row_set_dot_cuda(const RowPairs& problem, const T* dout, const T* x, int64_t width, int64_t capacity, int64_t seed,
                      T* out, const RowSetScratch& scratch, cudaStream_t stream) {
  if (problem.pairs * capacity == 0) return;
  row_set_cuda(problem, capacity, seed, scratch.ids, scratch.sizes, stream);
  launch(detail::row_set_dot_kernel<T>, detail::row_set_blocks(problem.pairs), detail::kRowSetThreads, 0, stream,
         problem.pairs, scratch.ids, scratch.sizes, capacity, dout, x, width, out);
}

}  // namespace anabranch
