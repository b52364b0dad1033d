// The norm before a feed-forward block on the GPU (row_norm.hpp defines it), a warp per row.
//
// A lane takes every 32nd piece of N elements; sums go through a fixed tree, so a row's result depends on its width
// alone and is the same in the forward and where the backward makes it again. The row is read from memory once and from
// L1 once or twice more. Bytes: x once, the result once. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/skip/row_norm.hpp"

namespace anabranch::detail {

/// Calls f(column) for the first column of each piece of a row that is a lane's.
template <int N, class F>
__device__ void for_each_piece(int64_t n, int lane, F&& f) {
#pragma unroll 4
  for (int64_t column = int64_t{lane} * N; column < n; column += 32 * N) f(column);
}

/// All lanes of a warp call it.
template <int N, class T>
__device__ RowMoments<accumulate_t<T>> row_moments(const RowNorm<T>& norm, int64_t n, const T* x, int lane) {
  using Sum = accumulate_t<T>;
  using std::sqrt;
  Sum mean = 0, squares = 0;
  if (norm.kind == NormKind::layer) {
    for_each_piece<N>(n, lane, [&](int64_t column) {
      const auto piece = Vector<T, N>::load(x + column);
      for (int k = 0; k < N; ++k) mean += static_cast<Sum>(piece.values[k]);
    });
    mean = warp_sum(mean) / static_cast<Sum>(n);
  }
  for_each_piece<N>(n, lane, [&](int64_t column) {
    const auto piece = Vector<T, N>::load(x + column);
    for (int k = 0; k < N; ++k) {
      const Sum centred = static_cast<Sum>(piece.values[k]) - mean;
      squares += centred * centred;
    }
  });
  squares = warp_sum(squares);
  return {mean, 1 / sqrt(squares / static_cast<Sum>(n) + static_cast<Sum>(norm.eps))};
}

/// The norm's weights or biases of N columns; `fallback` where there are none.
template <int N, class T>
__device__ Vector<T, N> norm_piece(const T* values, int64_t column, float fallback) {
  Vector<T, N> piece;
  if (values) return Vector<T, N>::load(values + column);
  for (T& value : piece.values) value = T(fallback);
  return piece;
}

template <int N, class T>
__device__ void normalize_row(const RowNorm<T>& norm, int64_t n, const T* x, T* normed, int lane) {
  using Sum = accumulate_t<T>;
  const auto moments = row_moments<N>(norm, n, x, lane);
  for_each_piece<N>(n, lane, [&](int64_t column) {
    auto piece = Vector<T, N>::load(x + column);
    const auto weights = norm_piece<N>(norm.weight, column, 1), biases = norm_piece<N>(norm.bias, column, 0);
    for (int k = 0; k < N; ++k) {
      const Sum centred = (static_cast<Sum>(piece.values[k]) - moments.mean) * moments.scale;
      piece.values[k] = T(centred * static_cast<Sum>(weights.values[k]) + static_cast<Sum>(biases.values[k]));
    }
    piece.store(normed + column);
  });
}

}  // namespace anabranch::detail
