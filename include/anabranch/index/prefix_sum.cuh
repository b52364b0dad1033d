// Sums of what lies before each of many numbers: where the ranges of a gather begin, which keys of a batch are new.
//
// One launch up to 2047 numbers, three beyond: sums of tiles, sums over the tiles (sort.cuh), sums within tiles. The
// numbers come from a function of their index that is called twice for each; they are not stored. Bytes: twice what the
// function reads, and one sum written for each number.
#pragma once

#include "anabranch/plan/sort.cuh"

namespace anabranch::detail {

/// The sum over the threads of the block before this one, and that of all. warp_sums has kSortWarps elements, and has
/// been read by all threads where it was used before.
template <class Count>
__device__ Count block_sum_before(Count value, const SharedArray<Count>& warp_sums, Count& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Count inclusive = warp_inclusive_sum(value);
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  Count before = 0;
  total = 0;
  for (int w = 0; w < kSortWarps; ++w) {
    const Count sum = warp_sums[w];
    if (w < warp) before += sum;
    total += sum;
  }
  return before + inclusive - value;
}

template <class Count, class Numbers>
__global__ void __launch_bounds__(kSortThreads) tile_sum_kernel(int64_t n, Numbers number_at, Count* tile_sums) {
  SharedMemory shared;
  const SharedArray<Count> warp_sums = shared.take<Count>(kSortWarps);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSortTile + threadIdx.x;
  Count sum = 0, total;
  for (int step = 0; step < kSortSteps; ++step) {
    const int64_t i = begin + step * kSortThreads;
    if (i < n) sum += number_at(i);
  }
  block_sum_before(sum, warp_sums, total);
  if (threadIdx.x == 0) tile_sums[blockIdx.x] = total;
}

/// tile_sums holds the sums before each tile; not read if there is a single tile. Three blocks per SM: left to itself,
/// ptxas spills for a fourth.
template <class Count, class Numbers>
__global__ void __launch_bounds__(kSortThreads, 3)
    prefix_sum_kernel(int64_t n, Numbers number_at, const Count* tile_sums, Count* before) {
  SharedMemory shared;
  const SharedArray<Count> warp_sums = shared.take<Count>(kSortWarps);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSortTile + static_cast<int64_t>(threadIdx.x) * kSortSteps;
  Count number[kSortSteps], sum = 0, total;
#pragma unroll
  for (int step = 0; step < kSortSteps; ++step) {
    number[step] = begin + step < n ? number_at(begin + step) : 0;
    sum += number[step];
  }
  Count next = block_sum_before(sum, warp_sums, total) + (gridDim.x > 1 ? tile_sums[blockIdx.x] : 0);
#pragma unroll
  for (int step = 0; step < kSortSteps; ++step) {
    if (begin + step <= n) before[begin + step] = next;
    next += number[step];
  }
}

/// One tile more than n needs where it fills its last one: place n holds the sum of all.
inline int64_t prefix_sum_tiles(int64_t n) { return n / kSortTile + 1; }
/// Elements of scratch.
inline int64_t prefix_sum_scratch(int64_t n) { return prefix_sum_tiles(n) + 1; }

/// before[i] = the sum of number_at(0 .. i), for i in 0 .. n.
template <class Count, class Numbers>
void prefix_sum_cuda(int64_t n, const Numbers& number_at, Count* before, Count* scratch, cudaStream_t stream) {
  const int64_t tiles = prefix_sum_tiles(n);
  const size_t bytes = shared_bytes<Count>(kSortWarps);
  if (tiles > 1) {
    launch(tile_sum_kernel<Count, Numbers>, static_cast<unsigned>(tiles), kSortThreads, bytes, stream, n, number_at,
           scratch);
    launch(sort_scan_kernel<Count>, 1u, kSortThreads, 0, stream, scratch, scratch + tiles, static_cast<int>(tiles), 1);
  }
  launch(prefix_sum_kernel<Count, Numbers>, static_cast<unsigned>(tiles), kSortThreads, bytes, stream, n, number_at,
         scratch, before);
}

}  // namespace anabranch::detail
