// Sets of two rows of a graph (row_intersect.hpp defines them) on the GPU: a warp for each pair.
//
// The lanes take 32 neighbouring elements of the driving row, and each looks for its own in the other row by bisection:
// driver * log2(other) loads, of which the upper steps are the same for all lanes. What is found is visited in
// ascending order, so sums have the bits of the definition. Sum: all lanes share the columns of one row of x after the
// other, 128 at a time; wider rows walk again. Bytes: 8 for each element of the driver, size * width * sizeof(T) of x.
//
// The sum's backward has a warp for each node, which asks 32 pairs at a time whether their sets hold it and adds their
// rows of dout in order: nodes * pairs bisections of two rows, all from the second cache; no atomics and no scratch.
//
// A sample of the smallest hashes is chosen by their leading digits: a histogram of eight bits of the hash (in shared
// memory, 1 KB a warp) shows in which digit the sample ends, and the walk is repeated within it. Hashes are even, so
// two or three walks settle a set of thousands; then one more writes the ids.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/row_intersect.hpp"

namespace anabranch {

namespace detail {

inline constexpr unsigned kRowSetThreads = 128;
inline constexpr int kRowSetColumns = 4;  // of a lane

__device__ inline bool row_contains(const GraphRow& row, int64_t id) {
  int64_t low = 0, high = row.size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    row.ids[middle] < id ? low = middle + 1 : high = middle;
  }
  return low < row.size && row.ids[low] == id;
}

/// f(id, whether it is in the set) for 32 elements of the driver at a time, in order; all lanes call f.
template <class F>
__device__ void walk_row_set(const RowPairs& problem, int64_t pair, F&& f) {
  const int64_t lane = threadIdx.x % 32;
  const auto rows = problem.rows(pair);
  const bool common = problem.mode == RowSetMode::intersection;
  for (int64_t base = 0; base < rows.driver.size; base += 32) {
    const bool exists = base + lane < rows.driver.size;
    const int64_t id = exists ? rows.driver.ids[base + lane] : -1;
    f(id, exists && problem.admits(pair, id) && row_contains(rows.other, id) == common);
  }
}

/// Sums of a lane's columns, first + 32 k.
template <class T>
struct ColumnSums {
  using Sum = accumulate_t<T>;
  int64_t first, width;
  Sum sums[kRowSetColumns] = {};

  __device__ ColumnSums(int64_t width_) : first(blockIdx.y * 32 * kRowSetColumns + threadIdx.x % 32), width(width_) {}

  __device__ void add(const T* row) {
#pragma unroll
    for (int k = 0; k < kRowSetColumns; ++k) {
      if (first + 32 * k < width) sums[k] += static_cast<Sum>(row[first + 32 * k]);
    }
  }
  __device__ void store(T* row) const {
#pragma unroll
    for (int k = 0; k < kRowSetColumns; ++k) {
      if (first + 32 * k < width) row[first + 32 * k] = T(sums[k]);
    }
  }
};

__device__ inline int64_t row_set_warp() {
  return static_cast<int64_t>(blockIdx.x) * (kRowSetThreads / 32) + threadIdx.x / 32;
}

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
    row_set_sum_backward_kernel(RowPairs problem, const T* dout, int64_t width, T* dx) {
  const int64_t node = row_set_warp(), lane = threadIdx.x % 32;
  if (node >= problem.nodes) return;
  const bool common = problem.mode == RowSetMode::intersection;
  ColumnSums<T> sums(width);
  for (int64_t base = 0; base < problem.pairs; base += 32) {
    const int64_t pair = base + lane;
    bool in_set = false;
    if (pair < problem.pairs && problem.admits(pair, node)) {
      const auto rows = problem.rows(pair);
      in_set = row_contains(rows.driver, node) && row_contains(rows.other, node) == common;
    }
    for (unsigned rest = __ballot_sync(kAllLanes, in_set); rest != 0; rest &= rest - 1) {
      sums.add(dout + (base + __ffs(static_cast<int>(rest)) - 1) * width);
    }
  }
  sums.store(dx + node * width);
}

/// The `capacity` smallest hashes of a set of more: those whose bits from `shift` on are at most `last`.
struct HashBound {
  int shift;
  uint64_t last;
};

/// All lanes of a warp; counts [256] is the warp's own.
__device__ inline HashBound bound_of_sample(const RowPairs& problem, int64_t pair, uint64_t chain, int64_t capacity,
                                            SharedArray<int> counts, int first_count) {
  constexpr int digits = 256, of_lane = digits / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t needed = capacity;
  uint64_t prefix = 0;
  for (int shift = 56;; shift -= 8) {
    for (int d = lane; d < digits; d += 32) counts[first_count + d] = 0;
    __syncwarp();
    walk_row_set(problem, pair, [&](int64_t id, bool in_set) {
      const uint64_t hash = chained_hash(chain, static_cast<uint64_t>(id));
      const uint64_t above = shift == 56 ? 0 : hash >> (shift + 8);
      if (in_set && above == prefix) atomicAdd(&counts[first_count + static_cast<int>(hash >> shift & 255)], 1);
    });
    __syncwarp();
    int own = 0;
    for (int d = 0; d < of_lane; ++d) own += counts[first_count + lane * of_lane + d];
    int through = own;
    for (unsigned distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, through, distance);
      if (lane >= static_cast<int>(distance)) through += before;
    }
    // The lane whose digits hold the sample's last hash, then the digit.
    const int holder = __ffs(static_cast<int>(__ballot_sync(kAllLanes, through >= needed))) - 1;
    needed -= __shfl_sync(kAllLanes, through - own, holder);
    int digit = holder * of_lane;
    int count = counts[first_count + digit];
    while (count < needed) {
      needed -= count;
      count = counts[first_count + ++digit];
    }
    prefix = prefix << 8 | static_cast<uint64_t>(digit);
    if (count == needed) return {shift, prefix};  // at shift 0 a digit has one hash: they are distinct
    __syncwarp();
  }
}

inline __global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_kernel(RowPairs problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) {
  SharedMemory shared;
  const SharedArray<int> counts = shared.take<int>(kRowSetThreads / 32 * 256);
  const int64_t pair = row_set_warp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (pair >= problem.pairs) return;
  int64_t size = 0;
  walk_row_set(problem, pair, [&](int64_t, bool in_set) { size += __popc(__ballot_sync(kAllLanes, in_set)); });
  if (lane == 0) sizes[pair] = size;
  if (capacity == 0) return;
  const uint64_t chain = problem.hash_of_pair(seed, pair);
  HashBound bound{0, ~uint64_t{0}};
  if (size > capacity) {
    bound = bound_of_sample(problem, pair, chain, capacity, counts, static_cast<int>(threadIdx.x) / 32 * 256);
  }
  int64_t written = 0;
  walk_row_set(problem, pair, [&](int64_t id, bool in_set) {
    const bool kept = in_set && chained_hash(chain, static_cast<uint64_t>(id)) >> bound.shift <= bound.last;
    const unsigned all = __ballot_sync(kAllLanes, kept);
    if (kept) ids[pair * capacity + written + __popc(all & ((1u << lane) - 1))] = id;
    written += __popc(all);
  });
  for (int64_t k = written + lane; k < capacity; k += 32) ids[pair * capacity + k] = -1;
}

inline dim3 row_set_grid(int64_t warps, int64_t width = 1) {
  constexpr int64_t per_block = kRowSetThreads / 32, columns = 32 * kRowSetColumns;
  return dim3(grid_of((warps + per_block - 1) / per_block), static_cast<unsigned>((width + columns - 1) / columns));
}

}  // namespace detail

/// row_set_sum_reference, to the bit. width is at most 128 * 65535.
template <class T>
void row_set_sum_cuda(const RowPairs& problem, const T* x, int64_t width, T* out, cudaStream_t stream) {
  if (problem.pairs * width == 0) return;
  launch(detail::row_set_sum_kernel<T>, detail::row_set_grid(problem.pairs, width), detail::kRowSetThreads, 0, stream,
         problem, x, width, out);
}

/// row_set_sum_backward_reference, to the bit.
template <class T>
void row_set_sum_backward_cuda(const RowPairs& problem, const T* dout, int64_t width, T* dx, cudaStream_t stream) {
  if (problem.nodes * width == 0) return;
  launch(detail::row_set_sum_backward_kernel<T>, detail::row_set_grid(problem.nodes, width), detail::kRowSetThreads, 0,
         stream, problem, dout, width, dx);
}

/// row_set_reference.
inline void row_set_cuda(const RowPairs& problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes,
                         cudaStream_t stream) {
  if (problem.pairs == 0) return;
  launch(detail::row_set_kernel, detail::row_set_grid(problem.pairs), detail::kRowSetThreads,
         shared_bytes<int>(detail::kRowSetThreads / 32 * 256), stream, problem, capacity, seed, ids, sizes);
}

}  // namespace anabranch
