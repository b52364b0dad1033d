// Grouped matrix product: every group of rows times its own matrix. What it computes, and its plain-loop definition.
//
//   grouped_mm      out[s, :] = x[s, :] @ w[g] (+ bias[g])   for the rows s of group g
//   grouped_mm_dw   dw[g]     = sum over the rows s of group g of x[s, :]^T dy[s, :]
//
// Row s belongs to group g where offsets[g] <= s < offsets[g + 1]. Rows past offsets[num_groups] belong to none: out is
// zero there, and they are not read. FLOPs 2 * rows * K * N; bytes: each touched w[g] once, rows of x and out once.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// A matrix with any strides, in elements.
template <class T>
struct StridedMatrix {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
  const T& operator()(int64_t row, int64_t column) const { return data[row * row_stride + column * column_stride]; }
};

template <class T>
struct GroupedMm {
  StridedMatrix<T> x;  // [num_rows, K]
  StridedMatrix<T> w;  // group 0's [K, N]
  int64_t w_group_stride;
  const T* bias;           // [num_groups, N] contiguous, or null
  const int32_t* offsets;  // [num_groups + 1]
  int64_t num_groups, num_rows, k, n;
  T* out;  // [num_rows, N] contiguous
};

template <class T>
struct GroupedMmDw {
  StridedMatrix<T> x;      // [num_rows, K]
  StridedMatrix<T> dy;     // [num_rows, N]
  const int32_t* offsets;  // [num_groups + 1]
  int64_t num_groups, k, n;
  T* dw;  // [num_groups, K, N] contiguous; zero for a group without rows
};

template <class T>
void grouped_mm_reference(const GroupedMm<T>& problem) {
  using Sum = accumulate_t<T>;
  const auto& [x, w, w_group_stride, bias, offsets, num_groups, num_rows, k, n, out] = problem;
  for (int64_t i = offsets[num_groups] * n; i < num_rows * n; ++i) out[i] = T(0.0f);
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t s = offsets[g]; s < offsets[g + 1]; ++s) {
      for (int64_t j = 0; j < n; ++j) {
        Sum sum = bias ? static_cast<Sum>(bias[g * n + j]) : Sum(0);
        for (int64_t p = 0; p < k; ++p) {
          const T& weight = w.data[g * w_group_stride + p * w.row_stride + j * w.column_stride];
          sum += static_cast<Sum>(x(s, p)) * static_cast<Sum>(weight);
        }
        out[s * n + j] = T(sum);
      }
    }
  }
}

template <class T>
void grouped_mm_dw_reference(const GroupedMmDw<T>& problem) {
  using Sum = accumulate_t<T>;
  const auto& [x, dy, offsets, num_groups, k, n, dw] = problem;
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t j = 0; j < n; ++j) {
        Sum sum = 0;
        for (int64_t s = offsets[g]; s < offsets[g + 1]; ++s) {
          sum += static_cast<Sum>(x(s, p)) * static_cast<Sum>(dy(s, j));
        }
        dw[(g * k + p) * n + j] = T(sum);
      }
    }
  }
}

}  // namespace anabranch
