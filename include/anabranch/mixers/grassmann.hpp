// The orthogonal projector H = U U^T on the span of the columns of A [n, rank] (JPmHC, arXiv 2602.18308), U from A by
// Gram-Schmidt, every column twice, so that U is orthonormal to rounding however close A's columns are.
//
// A column that lies in the span of those before it adds nothing: the projector then has a smaller rank, and the
// gradient to that column is zero. Gradient: dA = (I - H) (dH + dH^T) U R^-T, with A = U R.
//
// FLOPs: about 6 n rank^2, and 2 n^2 rank for H.
#pragma once

#include "anabranch/core/number.hpp"
#include "anabranch/mixers/mixer.hpp"

namespace anabranch::detail {

/// Columns of u beyond the rank are zero. r is upper triangular; a zero on its diagonal marks a column without a
/// direction of its own.
template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void gram_schmidt(const Logits& a, int rank, V (&u)[n][n], V (&r)[n][n]) {
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) u[i][j] = r[i][j] = V(0);
  }
  ANABRANCH_ROLLED
  for (int k = 0; k < rank; ++k) {
    V column[n], length_before(0), length(0);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) column[i] = V(a[i * rank + k]), length_before = length_before + column[i] * column[i];
    ANABRANCH_ROLLED
    for (int pass = 0; pass < 2; ++pass) {
      ANABRANCH_ROLLED
      for (int j = 0; j < k; ++j) {
        V dot = V(0);
        ANABRANCH_ROLLED
        for (int i = 0; i < n; ++i) dot = dot + u[i][j] * column[i];
        ANABRANCH_ROLLED
        for (int i = 0; i < n; ++i) column[i] = column[i] - dot * u[i][j];
        r[j][k] = r[j][k] + dot;
      }
    }
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) length = length + column[i] * column[i];
    // What rounding leaves of a dependent column is no direction: less than 1e-6 of its length, squared.
    const auto counts = length > length_before * V(1e-12) + V(1e-35);
    const V norm = select(counts, sqrt_of(length), V(0));
    const V inverse = select(counts, V(1) / max_of(norm, V(1e-30)), V(0));
    r[k][k] = norm;
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) u[i][k] = column[i] * inverse;
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void projector(const V (&u)[n][n], int rank, V (&h)[n][n]) {
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) {
      V sum = V(0);
      ANABRANCH_ROLLED
      for (int k = 0; k < rank; ++k) sum = sum + u[i][k] * u[j][k];
      h[i][j] = sum;
    }
  }
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void grassmann(const Mixer& mixer, const Logits& logits, V (&h)[n][n]) {
  V u[n][n], r[n][n];
  gram_schmidt<V, n>(logits, mixer.rank, u, r);
  projector<V, n>(u, mixer.rank, h);
}

template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void grassmann_backward(const Mixer& mixer, const Logits& logits, const V (&dh)[n][n],
                                                  const Out& dlogits) {
  V u[n][n], r[n][n], h[n][n], s[n][n];
  const int rank = mixer.rank;
  gram_schmidt<V, n>(logits, rank, u, r);
  projector<V, n>(u, rank, h);
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {  // s = (dH + dH^T) U, by columns
    ANABRANCH_ROLLED
    for (int k = 0; k < rank; ++k) {
      V sum = V(0);
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) sum = sum + (dh[i][j] + dh[j][i]) * u[j][k];
      s[i][k] = sum;
    }
  }
  ANABRANCH_ROLLED
  for (int k = 0; k < rank; ++k) {  // (I - H) s
    V out[n];
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      V sum = s[i][k];
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) sum = sum - h[i][j] * s[j][k];
      out[i] = sum;
    }
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) s[i][k] = out[i];
  }
  ANABRANCH_ROLLED
  for (int k = rank - 1; k >= 0; --k) {  // X R^T = s, from the last column back
    const auto counts = r[k][k] > V(0);
    const V inverse = select(counts, V(1) / select(counts, r[k][k], V(1)), V(0));
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      V sum = s[i][k];
      ANABRANCH_ROLLED
      for (int j = k + 1; j < rank; ++j) sum = sum - s[i][j] * r[k][j];
      s[i][k] = sum * inverse;
      dlogits[i * rank + k] = s[i][k];
    }
  }
}

}  // namespace anabranch::detail
