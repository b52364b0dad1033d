// Rows in entry order times their group's matrix on Hopper: the down product, the gradient of x, grouped_mm.
//
// A tile is kRows rows of one group by 256 columns, both operands by TMA. Rows of A past a tile's end are the next
// group's or whatever lies there: each row of the result depends on its own row alone, and those are not stored.
// Budgets, FLOPs and floor: grouped_gemm_sm90.cuh.
#pragma once

#include "anabranch/core/fragment.cuh"
#include "anabranch/experts/grouped_gemm.cuh"
#include "anabranch/experts/grouped_gemm_sm90.cuh"

namespace anabranch::detail {

__device__ inline int blocks_of_64(int64_t extent) { return static_cast<int>((extent + 63) / 64); }

/// A tile of rows of one group (0 where all share a matrix) and 256 sums of each. 32 bits, as the offsets have: two of
/// these live beside the sums.
struct RowsTile {
  int group, begin, rows, column, depth_blocks, width;
};

/// The part of a tile that its index gives: groups' rows as scheduled, column tiles of one row tile side by side.
__device__ inline RowsTile rows_tile(const RowTiles& tiles, int64_t index, int column_tiles, int columns_per_tile) {
  const RowTile rows = tiles.tile(index / column_tiles);
  const int column = static_cast<int>(index % column_tiles) * columns_per_tile;
  return {rows.group, static_cast<int>(rows.begin), rows.size(), column, 0, 0};
}

/// A tile's rows, 64 at a time as its warpgroups take them; those past its end are another tile's, or zeros.
__device__ inline void load_rows(const RowsTile& tile, const TensorMap& matrix, int column, SharedAddress to,
                                 SharedAddress barrier) {
  for (int first = 0; first < tile.rows; first += 64)
    tma_load(to + first * 128, matrix, column, tile.begin + first, 0, barrier);
}

__device__ inline int64_t scheduled_tiles(const RowTiles& tiles) {
  return tiles.tile_offsets[tiles.num_groups + tiles.with_tail];
}

/// Tiles of kColumns columns, on the host.
template <int kColumns>
int64_t column_tiles(int64_t columns) {
  return (columns + kColumns - 1) / kColumns;
}

/// out[s, :] = sum over parts of a_part[s, :] b_part[group of s] (+ bias): A's rows lie in entry order.
/// kBMnMajor: b_part [num_experts, depth, n]; else [num_experts, n, depth].
template <class T, class Shape_, int kParts, bool kBMnMajor_>
struct RowsProblem {
  using Element = T;
  using Shape = Shape_;
  using Tile = RowsTile;
  static constexpr bool kAMnMajor = false, kBMnMajor = kBMnMajor_, kThreadsLoad = false;
  static constexpr bool kBoxes = true;

  TensorMap a[kParts];  // [capacity, depth], boxes of 64
  TensorMap b[kParts];  // boxes of 256 lines, or 64 if N-major
  RowTiles tiles;
  const int32_t* widths;  // how much of depth an expert uses, or null
  const T* bias;          // [num_experts, n] or null
  int64_t depth, n;
  bool shared;  // all groups have matrix and bias 0
  T* out;       // [capacity, n]

  __device__ int column_tiles() const { return static_cast<int>((n + Shape::kColumns - 1) / Shape::kColumns); }
  __device__ int64_t num_tiles() const { return scheduled_tiles(tiles) * column_tiles(); }
  __device__ Tile tile(int64_t index) const {
    Tile tile = rows_tile(tiles, index, column_tiles(), Shape::kColumns);
    tile.width = tile.group == tiles.num_groups ? 0 : static_cast<int>(width_within(widths, tile.group, depth));
    tile.depth_blocks = kParts * blocks_of_64(tile.width);
    if (shared) tile.group = 0;
    return tile;
  }

  __device__ uint32_t box_bytes(const Tile& tile) const {
    return Shape::kBytesB + blocks_of_64(tile.rows) * kBlockBytes;
  }
  __device__ void load_boxes(const Tile& tile, int block, SharedAddress a_stage, SharedAddress b_stage,
                             SharedAddress barrier) const {
    const int per_part = tile.depth_blocks / kParts;
    const int part = kParts == 1 || block < per_part ? 0 : 1, k = (block - part * per_part) * 64;
    load_rows(tile, a[part], k, a_stage, barrier);
    if constexpr (kBMnMajor) {
#pragma unroll
      for (int c = 0; c < Shape::kColumns; c += 64)
        tma_load(b_stage + c * 128, b[part], tile.column + c, k, tile.group, barrier);
    } else {
      tma_load(b_stage, b[part], k, tile.column, tile.group, barrier);
    }
  }

  __device__ void add_bias(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    const T* group_bias = bias + tile.group * n;
#pragma unroll
    for (int reg = 0; reg < Shape::kColumns / 2; ++reg) {
      if (reg % 32 == 0) __syncwarp();  // no more loads under way than there are registers to hold them
      const int64_t column = tile.column + fragment_column(thread, reg);
      sums[reg] += widen(group_bias[column < n ? column : 0]);
    }
  }

  __device__ void store(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    if (bias && tile.group < tiles.num_groups) add_bias(tile, sums, thread);
    const int lane = thread % 32;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int row = fragment_row(thread, 2 * lower);
#pragma unroll
      for (int first = 0; first < Shape::kColumns / 8; first += 4) {
        uint32_t pairs[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int reg = 4 * (first + g) + 2 * lower;
          pairs[g] = pack_pair<T>({sums[reg], sums[reg + 1]});
        }
        quad_transpose(pairs);
        const int64_t column = tile.column + 8 * (first + lane % 4);
        if (row < tile.rows && column < n) store_pairs(out + (tile.begin + row) * n + column, pairs);
      }
    }
  }
};

/// A matrix in entry order, or a half of its columns, in boxes of 64 rows.
template <class T>
TensorMap entry_map(const T* matrix, int64_t capacity, int64_t columns, int64_t stride) {
  return make_tensor_map(TensorView<T>{matrix, columns, capacity, 1, stride, stride * capacity, 64});
}

}  // namespace anabranch::detail
