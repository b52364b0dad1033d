// Grouped matrix products on any GPU (grouped_mm.hpp defines them): the grouped products of grouped_gemm.cuh as they
// are. Two launches forward, one for dw. The host never sees the offsets: rows that no offset names keep what they
// held, and offsets out of range touch nothing beyond the arrays.
#pragma once

#include "anabranch/experts/grouped_gemm.cuh"
#include "anabranch/experts/grouped_mm.hpp"

namespace anabranch {

/// grouped_mm_reference, up to the order of a sum; `scratch` has row_tiles_scratch(num_groups) elements.
template <class T>
void grouped_mm_cuda(const GroupedMm<T>& problem, int32_t* scratch, cudaStream_t stream) {
  if (problem.num_rows == 0 || problem.n == 0) return;
  const auto tiles =
      row_tiles_cuda(problem.offsets, problem.num_groups, problem.num_rows, detail::kGemmTile, true, scratch, stream);
  detail::GroupedRows<T, detail::PlainStore<T>> rows{};
  rows.tiles = tiles;
  rows.a = {problem.x.data, problem.x.row_stride, problem.x.column_stride};
  rows.b = {problem.w.data, problem.w.column_stride, problem.w.row_stride};
  rows.b_group_stride = problem.w_group_stride;
  rows.bias = problem.bias;
  rows.bias_group_stride = problem.n;
  rows.k = problem.k;
  rows.n = problem.n;
  rows.num_parts = 1;
  rows.store = {problem.out};
  detail::grouped_rows_cuda(rows, stream);
}

/// grouped_mm_dw_reference; num_rows is the number of rows of x and dy.
template <class T>
void grouped_mm_dw_cuda(const GroupedMmDw<T>& problem, int64_t num_rows, cudaStream_t stream) {
  detail::GroupedOuter<T> outer{};
  outer.left = {problem.x.data, problem.x.column_stride, problem.x.row_stride};
  outer.right = {problem.dy.data, problem.dy.column_stride, problem.dy.row_stride};
  outer.row_offsets = problem.offsets;
  outer.num_groups = problem.num_groups;
  outer.num_rows = num_rows;
  outer.m = problem.k;
  outer.n = problem.n;
  outer.num_parts = 1;
  outer.to = problem.dw;
  outer.group_stride = problem.k * problem.n;
  outer.row_stride = problem.n;
  outer.column_stride = 1;
  detail::grouped_outer_cuda(outer, stream);
}

}  // namespace anabranch
