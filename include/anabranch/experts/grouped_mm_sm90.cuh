// grouped_mm and its weight gradient on Hopper: the products of the expert FFN (rows_sm90.cuh,
// weight_gradient_sm90.cuh) with rows that lie in group order already. Rows past the last offset are one more group, of
// depth 0.
//
// Launches: 2 and 1. FLOPs: 2 * rows * k * n, rows rounded up to 64 per group. Floor: FLOPs / peak, or the touched
// matrices / bandwidth with few rows.
#pragma once

#include "anabranch/experts/grouped_mm_sm90.hpp"
#include "anabranch/experts/heuristics.hpp"
#include "anabranch/experts/rows_sm90.cuh"
#include "anabranch/experts/weight_gradient_sm90.cuh"

namespace anabranch {

namespace detail {

template <class T, class Shape, bool kWMnMajor>
void grouped_mm_sm90_shape(const GroupedMm<T>& p, int32_t* scratch, int multiprocessors, cudaStream_t stream) {
  RowsProblem<T, Shape, 1, kWMnMajor> rows{};
  rows.a[0] = entry_map<T>(p.x.data, p.num_rows, p.k, p.x.row_stride);
  rows.b[0] =
      make_tensor_map(kWMnMajor ? TensorView<T>{p.w.data, p.n, p.k, p.num_groups, p.w.row_stride, p.w_group_stride, 64}
                                : TensorView<T>{p.w.data, p.k, p.n, p.num_groups, p.w.column_stride, p.w_group_stride,
                                                Shape::kColumns});
  rows.tiles = row_tiles_cuda(p.offsets, p.num_groups, p.num_rows, Shape::kRows, true, scratch, stream);
  rows.bias = p.bias;
  rows.depth = p.k;
  rows.n = p.n;
  rows.out = p.out;
  launch_grouped_gemm_sm90(rows, rows.tiles.max_tiles * ((p.n + Shape::kColumns - 1) / Shape::kColumns),
                           multiprocessors, stream);
}

}  // namespace detail

template <class T>
void grouped_mm_sm90(const GroupedMm<T>& problem, int32_t* scratch, int multiprocessors, cudaStream_t stream) {
  const bool flat = choose_expert_ffn_sm90(problem.num_rows, problem.num_groups).tile_rows == 64;
  const bool n_major = problem.w.column_stride == 1;
  const auto run = n_major ? flat ? detail::grouped_mm_sm90_shape<T, detail::Sm90Flat, true>
                                  : detail::grouped_mm_sm90_shape<T, detail::Sm90Tall, true>
                   : flat  ? detail::grouped_mm_sm90_shape<T, detail::Sm90Flat, false>
                           : detail::grouped_mm_sm90_shape<T, detail::Sm90Tall, false>;
  run(problem, scratch, multiprocessors, stream);
}

template <class T>
void grouped_mm_dw_sm90(const GroupedMmDw<T>& problem, int64_t num_rows, int multiprocessors, cudaStream_t stream) {
  detail::WeightGradientProblem<T, false> dw{};
  dw.a = problem.x.data;
  dw.b = problem.dy.data;
  dw.group_offsets = problem.offsets;
  dw.num_groups = problem.num_groups;
  dw.capacity = dw.num_items = num_rows;
  dw.m = dw.part_lines = dw.a_stride = problem.k;
  dw.n = dw.b_stride = problem.n;
  dw.out = problem.dw;
  dw.group_stride = problem.k * problem.n;
  dw.line_stride = problem.n;
  detail::weight_gradient_sm90(dw, multiprocessors, stream);
}

}  // namespace anabranch
