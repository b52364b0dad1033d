// Sinkhorn's iterations on one matrix of logits; sinkhorn_backward.hpp has their own gradient.
//
// Definition: M = exp(logits) with its columns divided by their sums, plus eps; then rows, and (iterations - 1) times
// columns and rows, each divided by (sum + eps). With eps = 0 this is the paper's T_r(T_c(M)) (mHC, arXiv 2512.24880);
// with eps > 0 and both transposes of Mixer it is what DeepSeek ships.
//
// M is never rewritten: it stays r_i M_ij c_j, so that half an iteration is one product of the matrix and a vector, and
// the iterates that the gradient needs are the vectors r and c. Where the logits span so much that these could leave
// float's range they are kept as logarithms instead, which costs n^2 exponentials per half iteration.
//
// FLOPs: 4 n^2 per iteration, 12 n^2 with the gradient. Kept for the gradient: 2 n numbers per iteration, on chip on
// the CPU and in global memory on the GPU.
#pragma once

#include "anabranch/core/number.hpp"
#include "anabranch/mixers/mixer.hpp"

namespace anabranch::detail {

/// Where the iterates of one matrix are kept; data may be null if nothing is kept.
template <class V>
struct History {
  V* data;
  int64_t stride;
  ANABRANCH_MATRIX_FUNCTION V& operator()(int64_t i) const { return data[i * stride]; }
};

/// Spans of logits, and sizes of r and c, up to which float loses nothing: e^80 and 1e30 of 3e38.
inline constexpr double kLinearRange = 80, kLargestVector = 1e30;

template <class V, int n>
struct Sinkhorn {
  using Matrix = V[n][n];
  const Mixer& mixer;
  History<V> history;

  /// M before any vector: column by column at most 1. Returns where the vectors may leave their range.
  ANABRANCH_MATRIX_FUNCTION auto start(const Matrix& logits, Matrix& m) const {
    V high = logits[0][0], low = logits[0][0];
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) high = max_of(high, logits[i][j]), low = min_of(low, logits[i][j]);
    }
    if (mixer.eps == 0) {
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) m[i][j] = exp_of(logits[i][j] - high);
      }
      return high - low > V(kLinearRange);
    }
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      V top = logits[0][j], sum = V(0);
      ANABRANCH_UNROLL
      for (int i = 1; i < n; ++i) top = max_of(top, logits[i][j]);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) m[i][j] = exp_of(logits[i][j] - top), sum = sum + m[i][j];
      const V inverse = V(1) / sum;
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) m[i][j] = m[i][j] * inverse + V(mixer.eps);
    }
    return V(0) > V(1);
  }

  /// The iterations on vectors: h = r M c. Returns where the vectors were too large to trust.
  ANABRANCH_MATRIX_FUNCTION auto linear(const Matrix& m, Matrix& h) const {
    const V eps(mixer.eps);
    V r[n], c[n], row_sums[n], column_sums[n];  // the sums are 1 / r and 1 / c
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) r[i] = c[i] = row_sums[i] = column_sums[i] = V(1);
    ANABRANCH_ROLLED
    for (int step = 0; step < mixer.iterations; ++step) {
      if (step > 0 || mixer.eps == 0) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) {
          V sum = mixer.eps == 0 ? V(0) : eps * column_sums[j];
          ANABRANCH_UNROLL
          for (int i = 0; i < n; ++i) sum = sum + m[i][j] * r[i];
          column_sums[j] = sum;
          c[j] = V(1) / sum;
        }
      }
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        V sum = mixer.eps == 0 ? V(0) : eps * row_sums[i];
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) sum = sum + m[i][j] * c[j];
        row_sums[i] = sum;
        r[i] = V(1) / sum;
      }
      keep(step, c, r);
    }
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) h[i][j] = r[i] * m[i][j] * c[j];
    }
    V largest = r[0];
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) largest = max_of(largest, max_of(r[i], c[i]));
    return largest > V(kLargestVector);
  }

  /// The iterations on logarithms: h = exp(logits + u + v).
  ANABRANCH_MATRIX_FUNCTION void logarithmic(const Matrix& logits, Matrix& h) const {
    V u[n], v[n];
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) u[i] = v[i] = V(0);
    ANABRANCH_ROLLED
    for (int step = 0; step < mixer.iterations; ++step) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) v[j] = V(0) - log_sum_exp([&](int i) { return logits[i][j] + u[i]; });
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) u[i] = V(0) - log_sum_exp([&](int j) { return logits[i][j] + v[j]; });
      keep(step, v, u);
    }
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) h[i][j] = exp_of(logits[i][j] + u[i] + v[j]);
    }
  }

  /// log sum_k exp(term(k)).
  template <class Term>
  ANABRANCH_MATRIX_FUNCTION V log_sum_exp(const Term& term) const {
    V top = term(0), sum = V(0);
    ANABRANCH_UNROLL
    for (int k = 1; k < n; ++k) top = max_of(top, term(k));
    ANABRANCH_UNROLL
    for (int k = 0; k < n; ++k) sum = sum + exp_of(term(k) - top);
    return top + log_of(sum);
  }

  ANABRANCH_MATRIX_FUNCTION void keep(int step, const V (&columns)[n], const V (&rows)[n]) const {
    if (!history.data) return;
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      history(2 * n * step + i) = columns[i];
      history(2 * n * step + n + i) = rows[i];
    }
  }

  ANABRANCH_MATRIX_FUNCTION void forward(const Matrix& logits, Matrix& h) const {
    Matrix m;
    const auto spread = start(logits, m);
    const auto wide = linear(m, h) | spread;
    if (any(wide)) {
      logarithmic(logits, m);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) h[i][j] = select(wide, m[i][j], h[i][j]);
      }
    }
  }
};

}  // namespace anabranch::detail
