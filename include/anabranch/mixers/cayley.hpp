// Orthogonal matrices from any logits: Cayley's map Y = (I - B)^-1 (I + B) of B = scale / 2 (G - G^T), and the
// truncated iteration that JPmHC (arXiv 2602.18308) computes in its place.
//
// Exact: closed forms for n <= 4 (the inverse is a polynomial in B), Gauss-Jordan elimination above: the symmetric part
// of I - B is I, so no pivot vanishes. Then one step Y <- Y (3 I - Y^T Y) / 2 towards orthogonality, which squares the
// rounding error that large logits leave. The gradient needs Y alone: dB = (I + Y)^T dY (I + Y)^T / 2.
//
// Truncated: Y_0 = I + 2 B, then `iterations` times Y <- I + B (I + Y). Orthogonal only for small logits, and further
// off with every iteration for large ones. Its gradient keeps every iterate.
//
// FLOPs: about 6 n^3 exact, 2 n^3 per iteration truncated.
#pragma once

#include "anabranch/core/number.hpp"
#include "anabranch/mixers/mixer.hpp"
#include "anabranch/mixers/sinkhorn.hpp"

namespace anabranch::detail {

/// c = a b.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void multiply(const V (&a)[n][n], const V (&b)[n][n], V (&c)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      V sum = a[i][0] * b[0][j];
      ANABRANCH_UNROLL
      for (int k = 1; k < n; ++k) sum = sum + a[i][k] * b[k][j];
      c[i][j] = sum;
    }
  }
}

/// c = a^T b.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void multiply_transposed(const V (&a)[n][n], const V (&b)[n][n], V (&c)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      V sum = a[0][i] * b[0][j];
      ANABRANCH_UNROLL
      for (int k = 1; k < n; ++k) sum = sum + a[k][i] * b[k][j];
      c[i][j] = sum;
    }
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void skew(const V (&logits)[n][n], double scale, V (&b)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) b[i][j] = V(scale / 2) * (logits[i][j] - logits[j][i]);
  }
}

/// Adds x to the diagonal.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void add_diagonal(const V& x, V (&a)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) a[i][i] = a[i][i] + x;
}

/// y = (I - b)^-1 (I + b) by elimination.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void cayley_by_elimination(const V (&b)[n][n], V (&y)[n][n]) {
  V left[n][n];
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) {
      left[i][j] = V(i == j) - b[i][j];
      y[i][j] = V(i == j) + b[i][j];
    }
  }
  ANABRANCH_ROLLED
  for (int k = 0; k < n; ++k) {
    const V inverse = V(1) / left[k][k];
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) left[k][j] = left[k][j] * inverse, y[k][j] = y[k][j] * inverse;
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      if (i == k) continue;
      const V factor = left[i][k];
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) {
        left[i][j] = left[i][j] - factor * left[k][j];
        y[i][j] = y[i][j] - factor * y[k][j];
      }
    }
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void cayley(const V (&logits)[n][n], double scale, V (&y)[n][n]) {
  V b[n][n];
  skew<V, n>(logits, scale, b);
  if constexpr (n > 4) {
    cayley_by_elimination<V, n>(b, y);
  } else {
    V half_norm(0), square[n][n];  // of B, squared
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = i + 1; j < n; ++j) half_norm = half_norm + b[i][j] * b[i][j];
    }
    multiply<V, n>(b, b, square);
    if constexpr (n < 4) {  // n = 2: B^2 = -half_norm I, so this is ((1 - half_norm) I + 2 B) / (1 + half_norm)
      const V factor = V(2) / (V(1) + half_norm);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) y[i][j] = V(i == j) + factor * (b[i][j] + square[i][j]);
      }
    } else {  // (I + B)^2 ((1 + half_norm) I + B^2) / (1 + half_norm + Pf^2)
      const V pfaffian = b[0][1] * b[2][3] - b[0][2] * b[1][3] + b[0][3] * b[1][2];
      const V inverse = V(1) / (V(1) + half_norm + pfaffian * pfaffian);
      V left[n][n];
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) {
          left[i][j] = (V(i == j) + V(2) * b[i][j] + square[i][j]) * inverse;
        }
      }
      add_diagonal<V, n>(V(1) + half_norm, square);
      multiply<V, n>(left, square, y);
    }
  }
  V gram[n][n], better[n][n];
  multiply_transposed<V, n>(y, y, gram);
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) gram[i][j] = V(i == j ? 1.5 : 0) - V(0.5) * gram[i][j];
  }
  multiply<V, n>(y, gram, better);
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) y[i][j] = better[i][j];
  }
}

/// dG = scale / 2 (dB - dB^T).
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void skew_backward(const V (&db)[n][n], double scale, V (&dlogits)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) dlogits[i][j] = V(scale / 2) * (db[i][j] - db[j][i]);
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void cayley_backward(V (&y)[n][n], double scale, const V (&dy)[n][n], V (&dlogits)[n][n]) {
  V left[n][n], db[n][n];
  add_diagonal<V, n>(V(1), y);  // overwrites y
  multiply_transposed<V, n>(y, dy, left);
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      V sum = V(0);
      ANABRANCH_UNROLL
      for (int k = 0; k < n; ++k) sum = sum + left[i][k] * y[j][k];
      db[i][j] = V(0.5) * sum;
    }
  }
  skew_backward<V, n>(db, scale, dlogits);
}

/// y; history, where there is one, keeps I + Y of every iteration before it.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void truncated_cayley(const V (&b)[n][n], int iterations, const History<V>& history,
                                                V (&y)[n][n]) {
  V next[n][n];
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) y[i][j] = V(i == j) + V(2) * b[i][j];
  }
  ANABRANCH_ROLLED
  for (int step = 0; step < iterations; ++step) {
    add_diagonal<V, n>(V(1), y);
    multiply<V, n>(b, y, next);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) {
        if (history.data) history(n * (n * step + i) + j) = y[i][j];
        y[i][j] = V(i == j) + next[i][j];
      }
    }
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void truncated_cayley_backward(const V (&logits)[n][n], const Mixer& mixer,
                                                         const History<V>& history, const V (&dy)[n][n],
                                                         V (&dlogits)[n][n]) {
  V b[n][n], y[n][n], db[n][n], down[n][n];
  skew<V, n>(logits, mixer.scale, b);
  truncated_cayley<V, n>(b, mixer.iterations, history, y);
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) db[i][j] = V(0), down[i][j] = dy[i][j];
  }
  ANABRANCH_ROLLED
  for (int step = mixer.iterations - 1; step >= 0; --step) {
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) {
        ANABRANCH_ROLLED
        for (int k = 0; k < n; ++k) db[i][j] = db[i][j] + down[i][k] * history(n * (n * step + j) + k);
      }
    }
    multiply_transposed<V, n>(b, down, y);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) down[i][j] = y[i][j];
    }
  }
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) db[i][j] = db[i][j] + V(2) * down[i][j];
  }
  skew_backward<V, n>(db, mixer.scale, dlogits);
}

}  // namespace anabranch::detail
