// From group_offsets to tiles of rows, on the device: the host knows the capacity alone.
//
// The schedule is num_groups + 1 sums (one more with a tail): tile_offsets[g] tiles come before those of group g. A
// block with the number of a tile finds its group by bisection, and a block whose number is past the last tile leaves:
// the grid is max_row_tiles, the most that a capacity can give. A group without rows has no tile. The tail is one more
// group behind all others, the rows past the last offset, for kernels that must fill them.
//
// One launch of one block; 8 bytes per group; floor: the launch. Offsets that decrease or leave [0, num_rows] give rows
// in range, some of them twice or never, and no more tiles than the grid has.
#pragma once

#include <algorithm>
#include <cstdint>

#include "anabranch/plan/offsets.cuh"
#include "anabranch/plan/sort.cuh"

namespace anabranch {

namespace detail {

struct RowRange {
  int64_t begin, end;
  __device__ int64_t size() const { return end - begin; }
};

/// The rows of a group, made to lie in [0, num_rows]; of the tail, where group is num_groups.
__device__ inline RowRange rows_of_group(const int32_t* row_offsets, int64_t group, int64_t num_groups,
                                         int64_t num_rows) {
  const int64_t first = row_offsets[group], begin = first < 0 ? 0 : first < num_rows ? first : num_rows;
  const int64_t last = group < num_groups ? row_offsets[group + 1] : num_rows;
  return {begin, last < begin ? begin : last < num_rows ? last : num_rows};
}

/// Rows begin .. end of one group; group is -1 where the tile does not exist.
struct RowTile {
  int32_t group;
  int64_t begin, end;
  __device__ int size() const { return static_cast<int>(end - begin); }
};

struct RowTiles {
  const int32_t* tile_offsets;
  const int32_t* row_offsets;  // [num_groups + 1]
  int64_t num_groups, num_rows;
  int64_t max_tiles;
  int tile_rows;
  bool with_tail;

  __device__ RowTile tile(int64_t index) const {
    const int64_t scheduled = num_groups + with_tail;
    if (index >= tile_offsets[scheduled]) return {-1, 0, 0};
    const int32_t group = group_of_entry(tile_offsets, scheduled, index);
    const RowRange rows = rows_of_group(row_offsets, group, num_groups, num_rows);
    const int64_t begin = rows.begin + (index - tile_offsets[group]) * tile_rows;
    return {group, begin, begin + tile_rows < rows.end ? begin + tile_rows : rows.end};
  }
};

/// A template so that every translation unit may hold it.
template <class Offset>
__global__ void __launch_bounds__(kSortThreads) row_tiles_kernel(RowTiles tiles, Offset* tile_offsets) {
  SharedMemory shared;
  const SharedArray<int64_t> warp_sums = shared.take<int64_t>(kSortWarps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t scheduled = tiles.num_groups + tiles.with_tail;
  int64_t before = 0;
  for (int64_t first = 0; first < scheduled; first += kSortThreads) {
    const int64_t group = first + threadIdx.x;
    int64_t count = 0;
    if (group < scheduled) {
      const RowRange rows = rows_of_group(tiles.row_offsets, group, tiles.num_groups, tiles.num_rows);
      count = (rows.size() + tiles.tile_rows - 1) / tiles.tile_rows;
    }
    const int64_t inclusive = warp_inclusive_sum(count);
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    int64_t place = before + inclusive - count;
    for (int w = 0; w < kSortWarps; ++w) {
      const int64_t sum = warp_sums[w];
      if (w < warp) place += sum;
      before += sum;
    }
    if (group < scheduled) tile_offsets[group] = static_cast<Offset>(place < tiles.max_tiles ? place : tiles.max_tiles);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    tile_offsets[scheduled] = static_cast<Offset>(before < tiles.max_tiles ? before : tiles.max_tiles);
  }
}

}  // namespace detail

/// int32 elements of a schedule.
inline int64_t row_tiles_scratch(int64_t num_groups) { return num_groups + 2; }

/// The most tiles that num_rows rows in num_groups groups can give; with a tail, count it as a group.
inline int64_t max_row_tiles(int64_t num_rows, int64_t num_groups, int tile_rows) {
  return num_rows / tile_rows + std::min(num_rows, num_groups);
}

/// Tiles of up to tile_rows rows of each group. row_offsets [num_groups + 1] lies on the device; `scratch` has
/// row_tiles_scratch elements and must live as long as the kernels that take the result.
inline detail::RowTiles row_tiles_cuda(const int32_t* row_offsets, int64_t num_groups, int64_t num_rows, int tile_rows,
                                       bool with_tail, int32_t* scratch, cudaStream_t stream) {
  const detail::RowTiles tiles{
      scratch,   row_offsets, num_groups, num_rows, max_row_tiles(num_rows, num_groups + with_tail, tile_rows),
      tile_rows, with_tail};
  launch(detail::row_tiles_kernel<int32_t>, 1, detail::kSortThreads, shared_bytes<int64_t>(detail::kSortWarps), stream,
         tiles, scratch);
  return tiles;
}

}  // namespace anabranch
