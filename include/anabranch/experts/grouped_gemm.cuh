// The two grouped products of the experts room, on any GPU: rows times their group's matrix, and sums over the rows of
// a group. Grouped_mm, the down projection and both data gradients are the first, all weight gradients the second.
//
// GroupedRows: a block takes 64 rows of one group by 64 columns. Blocks of one row tile are neighbours, so that they
// share its rows through L2, and row tiles of a group follow each other, so that they share its matrix.
// GroupedOuter: a block takes 64 x 64 elements of one group's result and sums over the group's rows in order: nothing
// to reduce after, and a group without rows gets exact zeros. FLOPs: gemm_tile.cuh's. Bytes: GroupedRows reads each row
// once per column tile and each touched matrix once per row tile, GroupedOuter each row once per tile it takes part in,
// mostly from L2; results are written once.
#pragma once

#include <utility>

#include "anabranch/core/vector.cuh"
#include "anabranch/experts/gemm_tile.cuh"
#include "anabranch/experts/tile_schedule.cuh"

namespace anabranch::detail {

__device__ inline int64_t ceil_div_64(int64_t dividend) { return (dividend + kGemmTile - 1) / kGemmTile; }

/// Lines of a tile that starts at `first` among `count`: at most 64, none if it starts behind them.
__device__ inline int lines_from(int64_t first, int64_t count) {
  const int64_t left = count - first;
  return static_cast<int>(left < 0 ? 0 : left < kGemmTile ? left : kGemmTile);
}

/// What a device width may be: in [0, limit], whatever it says; `limit` without widths.
__device__ inline int64_t width_within(const int32_t* widths, int64_t group, int64_t limit) {
  if (!widths) return limit;
  const int64_t width = widths[group];
  return width < 0 ? 0 : width < limit ? width : limit;
}

/// Where GroupedRows puts its sums if nothing else is said: rows as they are.
template <class Out>
struct PlainStore {
  Out* out;  // [num_rows, n]

  /// Columns first .. first + columns of n, by the lanes of a warp; value(c) is the sum of column first + c.
  template <class Value>
  __device__ void operator()(int64_t row, int64_t n, int64_t first, int columns, int lane, Value&& value) const {
    for (int column = lane; column < columns; column += 32) out[row * n + first + column] = Out(value(column));
  }
};

/// store(s, j) = bias[g, j] + sum over parts and p < k of a(s, p) * b[g](j, p) for the rows s of every group g.
template <class T, class Store>
struct GroupedRows {
  RowTiles tiles;                             // the tail's rows become zeros
  GemmLines<T> a;                             // line s: row s
  GemmLines<T> b;                             // line j: column j of group 0's matrix
  int64_t b_group_stride, bias_group_stride;  // 0: all groups have one
  const T* bias;                              // [num_groups, n] or null
  const int32_t* widths;                      // [num_groups]: how many of the k elements a group uses; or null
  int64_t k, n;
  int64_t num_parts, a_part_stride, b_part_stride;
  Store store;
};

template <class T, class Store>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>) grouped_rows_kernel(GroupedRows<T, Store> problem) {
  using Sum = accumulate_t<T>;
  const int64_t column_tiles = ceil_div_64(problem.n), block = blockIdx.x;
  const RowTile rows = problem.tiles.tile(block / column_tiles);
  if (rows.group < 0) return;
  const int64_t first = block % column_tiles * kGemmTile;
  const int columns = lines_from(first, problem.n);
  const bool exists = rows.group < problem.tiles.num_groups;
  GemmTile<T> tile;
  if (exists) {
    const int64_t k = width_within(problem.widths, rows.group, problem.k);
#pragma unroll 1
    for (int64_t part = 0; part < problem.num_parts; ++part) {
      tile.add(problem.a.moved(part * problem.a_part_stride), rows.begin, rows.size(),
               problem.b.moved(rows.group * problem.b_group_stride + part * problem.b_part_stride), first, columns, k);
    }
  }
  const SharedArray<Sum> sums = tile.share();
  const T* bias = exists && problem.bias ? problem.bias + rows.group * problem.bias_group_stride + first : nullptr;
  for_each_tile_row(rows.size(), [&](int row, int lane) {
    problem.store(rows.begin + row, problem.n, first, columns, lane, [&](int column) {
      const Sum sum = sums[row * kGemmTile + column];
      return bias ? sum + static_cast<Sum>(bias[column]) : sum;
    });
  });
}

template <class T, class Store>
void grouped_rows_cuda(const GroupedRows<T, Store>& problem, cudaStream_t stream) {
  const int64_t blocks = problem.tiles.max_tiles * ((problem.n + kGemmTile - 1) / kGemmTile);
  if (blocks == 0) return;
  launch(grouped_rows_kernel<T, Store>, grid_of(blocks), kGemmThreads, GemmTile<T>::shared_size(), stream, problem);
}

/// to[g](i, j) = sum over the rows s of group g of left(i, s) * right(j, s), for every part of the lines; zero for
/// frozen groups and beyond a width.
template <class T>
struct GroupedOuter {
  GemmColumns<T> left, right;  // element s: of row s
  const int32_t* row_offsets;
  int64_t num_groups, num_rows;
  const int32_t *left_widths, *right_widths;  // [num_groups] lines in use, or null
  const bool* frozen;                         // [num_groups] or null
  int64_t m, n;
  int64_t num_parts, left_part_stride, right_part_stride;
  T* to;
  int64_t group_stride, part_stride, row_stride, column_stride;

  /// The same sums with the unit stride of `to`, if it has one, along columns: those are written by neighbouring lanes.
  GroupedOuter turned() const {
    GroupedOuter other = *this;
    if (column_stride == 1 || row_stride != 1) return other;
    std::swap(other.left, other.right);
    std::swap(other.left_widths, other.right_widths);
    std::swap(other.left_part_stride, other.right_part_stride);
    std::swap(other.m, other.n);
    std::swap(other.row_stride, other.column_stride);
    return other;
  }
};

template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>) grouped_outer_kernel(GroupedOuter<T> problem) {
  using Sum = accumulate_t<T>;
  const int64_t column_tiles = ceil_div_64(problem.n), row_tiles = ceil_div_64(problem.m);
  int64_t block = blockIdx.x;
  const int64_t first_column = block % column_tiles * kGemmTile;
  block /= column_tiles;
  const int64_t first_row = block % row_tiles * kGemmTile;
  block /= row_tiles;
  const int64_t part = block % problem.num_parts, group = block / problem.num_parts;
  const int rows = lines_from(first_row, problem.m), columns = lines_from(first_column, problem.n);
  const RowRange summed = rows_of_group(problem.row_offsets, group, problem.num_groups, problem.num_rows);
  const int used_rows = lines_from(first_row, width_within(problem.left_widths, group, problem.m));
  const int used_columns = lines_from(first_column, width_within(problem.right_widths, group, problem.n));
  GemmTile<T> tile;
  if (used_rows > 0 && used_columns > 0 && !(problem.frozen && problem.frozen[group])) {
    tile.add(problem.left.from(part * problem.left_part_stride, summed.begin), first_row, used_rows,
             problem.right.from(part * problem.right_part_stride, summed.begin), first_column, used_columns,
             summed.size());
  }
  const SharedArray<Sum> sums = tile.share();
  for_each_tile_row(rows, [&](int row, int lane) {
    T* to = problem.to + group * problem.group_stride + part * problem.part_stride +
            (first_row + row) * problem.row_stride + first_column * problem.column_stride;
    for (int column = lane; column < columns; column += 32) {
      const Sum sum = sums[row * kGemmTile + column];
      to[column * problem.column_stride] = T(sum);
    }
  });
}

template <class T>
void grouped_outer_cuda(const GroupedOuter<T>& given, cudaStream_t stream) {
  const GroupedOuter<T> problem = given.turned();
  const int64_t tiles = ((problem.m + kGemmTile - 1) / kGemmTile) * ((problem.n + kGemmTile - 1) / kGemmTile);
  const int64_t blocks = problem.num_groups * problem.num_parts * tiles;
  if (blocks == 0) return;
  launch(grouped_outer_kernel<T>, grid_of(blocks), kGemmThreads, GemmTile<T>::shared_size(), stream, problem);
}

}  // namespace anabranch::detail
