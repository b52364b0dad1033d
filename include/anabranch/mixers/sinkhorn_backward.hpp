// The unrolled gradient of Sinkhorn's iterations (sinkhorn.hpp): they are computed again, their vectors kept, and gone
// through from the last to the first.
#pragma once

#include "anabranch/mixers/sinkhorn.hpp"

namespace anabranch::detail {

template <class V, int n>
struct SinkhornGradient : Sinkhorn<V, n> {
  using Base = Sinkhorn<V, n>;
  using Base::mixer, Base::history, Base::start, Base::linear, Base::logarithmic;
  using typename Base::Matrix;

  ANABRANCH_MATRIX_FUNCTION V column(int step, int j) const { return history(2 * n * step + j); }
  ANABRANCH_MATRIX_FUNCTION V row(int step, int i) const { return step < 0 ? V(1) : history(2 * n * step + n + i); }

  /// The gradient of `linear`: rho and gamma are those of log r and log c, and every term of M's own is r_i t_j.
  ANABRANCH_MATRIX_FUNCTION void linear_backward(const Matrix& m, const Matrix& dh, Matrix& dlogits) const {
    const V eps(mixer.eps);
    V rho[n], gamma[n], terms[n][n];
    const int last = mixer.iterations - 1;
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) rho[i] = gamma[i] = V(0);
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) {
        const V scale = row(last, i) * column(last, j), part = dh[i][j] * scale;
        terms[i][j] = part;
        rho[i] = rho[i] + part * m[i][j];
        gamma[j] = gamma[j] + part * m[i][j];
      }
    }
    ANABRANCH_ROLLED
    for (int step = last; step >= 0; --step) {
      V t[n], c[n], r[n];
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        t[i] = rho[i] * row(step, i);
        c[i] = column(step, i);
        r[i] = row(step - 1, i);
        rho[i] = mixer.eps == 0 ? V(0) : t[i] * eps / r[i];
      }
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) {
        V sum = V(0);
        ANABRANCH_UNROLL
        for (int i = 0; i < n; ++i) {
          sum = sum + m[i][j] * t[i];
          terms[i][j] = terms[i][j] - t[i] * c[j];
        }
        gamma[j] = gamma[j] - c[j] * sum;
      }
      if (step == 0 && mixer.eps != 0) break;
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) {
        t[j] = gamma[j] * c[j];
        gamma[j] = mixer.eps == 0 ? V(0) : t[j] * eps / column(step - 1, j);
      }
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        V sum = V(0);
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) {
          sum = sum + m[i][j] * t[j];
          terms[i][j] = terms[i][j] - r[i] * t[j];
        }
        rho[i] = rho[i] - r[i] * sum;
      }
    }
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      V sum = V(0);
      if (mixer.eps != 0) {  // back through the softmax of the column
        ANABRANCH_UNROLL
        for (int i = 0; i < n; ++i) sum = sum + (m[i][j] - eps) * terms[i][j];
      }
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) dlogits[i][j] = (m[i][j] - eps) * (terms[i][j] - sum);
    }
  }

  /// The gradient of `logarithmic`.
  ANABRANCH_MATRIX_FUNCTION void logarithmic_backward(const Matrix& logits, const Matrix& h, const Matrix& dh,
                                                      Matrix& dlogits) const {
    V rho[n], gamma[n];
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) rho[i] = gamma[i] = V(0);
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) {
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) {
        const V part = dh[i][j] * h[i][j];
        dlogits[i][j] = part;
        rho[i] = rho[i] + part;
        gamma[j] = gamma[j] + part;
      }
    }
    ANABRANCH_ROLLED
    for (int step = mixer.iterations - 1; step >= 0; --step) {
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) {
          const V part = rho[i] * exp_of(logits[i][j] + row(step, i) + column(step, j));
          dlogits[i][j] = dlogits[i][j] - part;
          gamma[j] = gamma[j] - part;
        }
      }
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        const V u = step == 0 ? V(0) : row(step - 1, i);
        rho[i] = V(0);
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) {
          const V part = gamma[j] * exp_of(logits[i][j] + u + column(step, j));
          dlogits[i][j] = dlogits[i][j] - part;
          rho[i] = rho[i] - part;
        }
      }
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) gamma[j] = V(0);
    }
  }

  /// The gradient of `forward`, unrolled: history is filled again.
  ANABRANCH_MATRIX_FUNCTION void backward(const Matrix& logits, const Matrix& dh, Matrix& dlogits) const {
    Matrix m, h;
    const auto spread = start(logits, m);
    const auto wide = linear(m, h) | spread;
    linear_backward(m, dh, dlogits);
    if (any(wide)) {
      Matrix other;
      logarithmic(logits, h);
      logarithmic_backward(logits, h, dh, other);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) {
        ANABRANCH_UNROLL
        for (int j = 0; j < n; ++j) dlogits[i][j] = select(wide, other[i][j], dlogits[i][j]);
      }
    }
  }
};

}  // namespace anabranch::detail
