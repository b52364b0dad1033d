// Sums over the rows of a group on Hopper: out[g] = a[rows of g]^T b[rows of g], the weight gradients.
//
// A tile is 128 columns of a by 256 columns of b; k runs over the group's rows, so both operands are MN-major. A k-row
// past the group's end must be zero on both sides, since 0 * NaN is NaN: threads copy the rows by cp.async, which fills
// with zeros, where a TMA box would bring the next group's. One of the two operands may be gathered through item ids.
// One block sums a tile over all its rows in order: deterministic, and a group without rows, or a frozen one, gets
// zeros.
//
// FLOPs: 2 * rows * m * n, rows rounded up to 64 per group. Bytes: out once; a and b from L2 once per tile they take
// part in. Floor: FLOPs / peak, or the bytes of out / bandwidth with few rows.
#pragma once

#include "anabranch/core/fragment.cuh"
#include "anabranch/experts/gathered_rows_sm90.cuh"
#include "anabranch/experts/grouped_gemm_sm90.cuh"
#include "anabranch/experts/tile_schedule.cuh"

namespace anabranch::detail {

template <class T, bool kGathersA>
struct WeightGradientProblem {
  using Element = T;
  using Shape = Sm90Tall;
  static constexpr bool kAMnMajor = true, kBMnMajor = true, kThreadsLoad = true;
  static constexpr bool kBoxes = false;

  const T* a;  // [rows, m], rows a_stride apart
  const T* b;  // [rows, n], rows b_stride apart
  const int32_t* group_offsets;
  const int32_t* item_ids;  // or null: both operands lie in entry order
  const bool* frozen;       // [num_groups] or null
  int64_t num_groups, capacity, num_items, m, n, a_stride, b_stride;
  // out[g](i, j) lies at g * group_stride + i / part_lines * part_stride + i % part_lines * line_stride + j
  T* out;
  int64_t group_stride, part_lines, part_stride, line_stride;

  struct Tile {
    int begin, end, group;  // entries begin .. end
    int first_a, first_b, rows, depth_blocks;
  };

  __device__ int64_t tiles_a() const { return (m + Shape::kRows - 1) / Shape::kRows; }
  __device__ int64_t tiles_b() const { return (n + Shape::kColumns - 1) / Shape::kColumns; }
  __device__ int64_t num_tiles() const { return num_groups * tiles_a() * tiles_b(); }
  __device__ Tile tile(int64_t index) const {
    Tile tile{};
    tile.group = static_cast<int>(index / (tiles_a() * tiles_b()));
    tile.first_a = static_cast<int>(index / tiles_b() % tiles_a()) * Shape::kRows;
    tile.first_b = static_cast<int>(index % tiles_b()) * Shape::kColumns;
    tile.rows = static_cast<int>(m - tile.first_a < Shape::kRows ? m - tile.first_a : Shape::kRows);
    const RowRange entries = rows_of_group(group_offsets, tile.group, num_groups, capacity);
    tile.begin = static_cast<int>(entries.begin);
    tile.end = static_cast<int>(entries.end);
    tile.depth_blocks = frozen && frozen[tile.group] ? 0 : (tile.end - tile.begin + 63) / 64;
    return tile;
  }

  /// Ids are read one depth block ahead of the rows they name.
  struct RowLoader {
    int thread;
    int32_t entries[4], items[4];

    __device__ RowLoader(const WeightGradientProblem& problem, const Tile& tile, int thread_) : thread(thread_) {
      read_ids(problem, tile, 0);
    }
    __device__ void read_ids(const WeightGradientProblem& problem, const Tile& tile, int block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t entry = tile.begin + block * 64 + thread / 8 + 16 * i;
        const int32_t item = entry >= tile.end ? -1 : problem.item_ids ? problem.item_ids[entry] : entry;
        items[i] = item < problem.num_items ? item : -1;
        entries[i] = items[i] >= 0 ? entry : -1;
      }
    }
    __device__ void copy(const WeightGradientProblem& problem, const Tile& tile, int block, SharedAddress a,
                         SharedAddress b) {
      copy_k_rows<T, Shape::kRows / 64>(problem.a, problem.a_stride, problem.m, tile.first_a,
                                        kGathersA ? items : entries, thread, a);
      copy_k_rows<T, Shape::kColumns / 64>(problem.b, problem.b_stride, problem.n, tile.first_b,
                                           kGathersA ? entries : items, thread, b);
      read_ids(problem, tile, block + 1);
    }
  };

  __device__ void store(const Tile& tile, const float (&sums)[Shape::kColumns / 2], int thread) const {
    const int lane = thread % 32;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t line = tile.first_a + fragment_row(thread, 2 * lower);
      T* to = out + tile.group * group_stride + line / part_lines * part_stride + line % part_lines * line_stride;
#pragma unroll
      for (int first = 0; first < Shape::kColumns / 8; first += 4) {
        uint32_t pairs[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int reg = 4 * (first + g) + 2 * lower;
          pairs[g] = pack_pair<T>({sums[reg], sums[reg + 1]});
        }
        quad_transpose(pairs);
        const int64_t column = tile.first_b + 8 * (first + lane % 4);
        if (line < m && column < n) store_pairs(to + column, pairs);
      }
    }
  }
};

template <class T, bool kGathersA>
void weight_gradient_sm90(const WeightGradientProblem<T, kGathersA>& problem, int multiprocessors,
                          cudaStream_t stream) {
  using Shape = typename WeightGradientProblem<T, kGathersA>::Shape;
  const int64_t tiles = (problem.m + Shape::kRows - 1) / Shape::kRows *
                        ((problem.n + Shape::kColumns - 1) / Shape::kColumns) * problem.num_groups;
  launch_grouped_gemm_sm90(problem, tiles, multiprocessors, stream);
}

}  // namespace anabranch::detail
