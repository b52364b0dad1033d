// Sets of two rows of a graph (row_intersect.hpp defines them) on the GPU: a warp for each pair. Their sums are in
// row_set_sum.cuh.
//
// The lanes take 32 neighbouring elements of the driving row, and each looks for its own in the other row by bisection:
// driver * log2(other) loads, of which the upper steps are the same for all lanes. What is found is visited in
// ascending order. Bytes: 8 for each element of the driver, and 8 for each id that is written.
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

/// Where an id is in an ascending row, or -1.
__device__ inline int64_t place_in_row(const GraphRow& row, int64_t id) {
  int64_t low = 0, high = row.size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    row.ids[middle] < id ? low = middle + 1 : high = middle;
  }
  return low < row.size && row.ids[low] == id ? low : -1;
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
    f(id, exists && problem.admits(pair, id) && (place_in_row(rows.other, id) >= 0) == common);
  }
}

__device__ inline int64_t row_set_warp() {
  return static_cast<int64_t>(blockIdx.x) * (kRowSetThreads / 32) + threadIdx.x / 32;
}

/// Of a set of more elements than a sample holds, those in the sample: the bits of their hashes from `shift` on are at
/// most `last`.
struct HashBound {
  int shift;
  uint64_t last;

  __device__ bool keeps(uint64_t chain, int64_t id) const {
    return chained_hash(chain, static_cast<uint64_t>(id)) >> shift <= last;
  }
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
    // At shift 0 a digit has one hash. They are distinct, but for a row that names an id twice.
    if (count == needed || shift == 0) return {shift, prefix};
    __syncwarp();
  }
}

/// f(id, whether it is in the sample) as walk_row_set, for all of the set's elements; returns the size of the set.
/// counts has 256 for each warp of the block. A capacity of 0 walks for the size alone.
template <class F>
__device__ int64_t walk_row_sample(const RowPairs& problem, int64_t pair, int64_t capacity, int64_t seed,
                                   SharedArray<int> counts, F&& f) {
  int64_t size = 0;
  walk_row_set(problem, pair, [&](int64_t, bool in_set) { size += __popc(__ballot_sync(kAllLanes, in_set)); });
  if (capacity == 0) return size;
  const uint64_t chain = problem.hash_of_pair(seed, pair);
  HashBound bound{0, ~uint64_t{0}};
  if (size > capacity) {
    bound = bound_of_sample(problem, pair, chain, capacity, counts, static_cast<int>(threadIdx.x) / 32 * 256);
  }
  int64_t taken = 0;  // of a row that names an id twice, more than the capacity may be within the bound
  walk_row_set(problem, pair, [&](int64_t id, bool in_set) {
    const bool within = in_set && bound.keeps(chain, id);
    const unsigned all = __ballot_sync(kAllLanes, within), before = all & ((1u << threadIdx.x % 32) - 1);
    f(id, within && taken + __popc(before) < capacity);
    taken += __popc(all);
  });
  return size;
}

inline __global__ void __launch_bounds__(kRowSetThreads, 1)
    row_set_kernel(RowPairs problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) {
  SharedMemory shared;
  const SharedArray<int> counts = shared.take<int>(kRowSetThreads / 32 * 256);
  const int64_t pair = row_set_warp();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (pair >= problem.pairs) return;
  int64_t written = 0;
  const int64_t size = walk_row_sample(problem, pair, capacity, seed, counts, [&](int64_t id, bool kept) {
    const unsigned all = __ballot_sync(kAllLanes, kept);
    if (kept) ids[pair * capacity + written + __popc(all & ((1u << lane) - 1))] = id;
    written += __popc(all);
  });
  if (lane == 0) sizes[pair] = size;
  for (int64_t k = written + lane; k < capacity; k += 32) ids[pair * capacity + k] = -1;
}

inline unsigned row_set_blocks(int64_t warps) {
  constexpr int64_t per_block = kRowSetThreads / 32;
  return grid_of((warps + per_block - 1) / per_block);
}

inline size_t row_set_counts_bytes() { return shared_bytes<int>(kRowSetThreads / 32 * 256); }

}  // namespace detail

/// row_set_reference.
inline void row_set_cuda(const RowPairs& problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes,
                         cudaStream_t stream) {
  if (problem.pairs == 0) return;
  launch(detail::row_set_kernel, detail::row_set_blocks(problem.pairs), detail::kRowSetThreads,
         detail::row_set_counts_bytes(), stream, problem, capacity, seed, ids, sizes);
}

}  // namespace anabranch
