// The doubly stochastic matrix P = exp(logits + u + v), and the gradient of such a projection.
//
// P is the row softmax of logits + v, so that rows are right by construction; v minimises the convex
// sum_i log sum_j exp(logits_ij + v_j) - sum_j v_j. Its gradient is the error of the columns' sums and its Hessian the
// Laplacian of the graph with weights sum_i P_ij P_ik: Newton's step solves with that. A step that overshoots (the
// slope along it has turned) is cut to a quarter, and after some cuts replaced by one of Sinkhorn's, which always
// descends.
//
// The gradient, for any P with row sums a and column sums b that are kept as they are: h -> P moves within
// diag(u) exp(h) diag(v), and u, v solve the same Laplacian. Both use elimination without subtraction (Grassmann,
// Taksar and Heyman): weights near zero, where P is near a permutation, keep all their digits.
//
// FLOPs: about n^2 (10 + n) and n^2 exponentials per step; 3 to 6 steps at logits of standard deviation 1 to 8, and as
// many again for every doubling of the logits beyond a span of 32.
#pragma once

#include "anabranch/core/number.hpp"
#include "anabranch/mixers/mixer.hpp"

namespace anabranch::detail {

/// Solves the Laplacian L of the symmetric weights w (read above the diagonal, overwritten), L x = b with
/// x[n - 1] = 0, where the entries of b sum to zero. A node without edges gets 0.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void solve_laplacian(V (&w)[n][n], V (&b)[n], V (&x)[n]) {
  const V tiny(1e-35);
  V inverse[n];
  ANABRANCH_UNROLL
  for (int k = 0; k < n - 1; ++k) {
    V degree = V(0);
    ANABRANCH_UNROLL
    for (int j = k + 1; j < n; ++j) degree = degree + w[k][j];
    inverse[k] = select(degree > tiny, V(1) / max_of(degree, tiny), V(0));
    ANABRANCH_UNROLL
    for (int i = k + 1; i < n; ++i) {
      const V share = w[k][i] * inverse[k];
      b[i] = b[i] + b[k] * share;
      ANABRANCH_UNROLL
      for (int j = i + 1; j < n; ++j) w[i][j] = w[i][j] + share * w[k][j];
    }
  }
  x[n - 1] = V(0);
  ANABRANCH_UNROLL
  for (int k = n - 2; k >= 0; --k) {
    V sum = b[k];
    ANABRANCH_UNROLL
    for (int j = k + 1; j < n; ++j) sum = sum + w[k][j] * x[j];
    x[k] = sum * inverse[k];
  }
}

/// w[j][k] = sum_i p[i][j] p[i][k] / a[i] for j < k.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void laplacian_weights(const V (&p)[n][n], const V (&inverse_a)[n], V (&w)[n][n]) {
  ANABRANCH_UNROLL
  for (int j = 0; j < n; ++j) {
    ANABRANCH_UNROLL
    for (int k = j + 1; k < n; ++k) {
      V sum = V(0);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) sum = sum + p[i][j] * p[i][k] * inverse_a[i];
      w[j][k] = sum;
    }
  }
}

inline constexpr int kNewtonSteps = 200, kMostHalvings = 40, kMostCuts = 7;
inline constexpr double kNewtonRange = 32, kRoughTolerance = 1e-3;

/// From v on, until no column's sum is off by more than the tolerance or after kNewtonSteps trials. Matrices side by
/// side stop one by one, those with `finished` > 0 at once: what a matrix becomes must not depend on its neighbours.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void balance(const V (&logits)[n][n], double tolerance, V finished, V (&v)[n], V (&p)[n][n]) {
  V trial[n], step[n], size(1), slope(0), cuts(0);
  ANABRANCH_UNROLL
  for (int j = 0; j < n; ++j) trial[j] = v[j], step[j] = V(0);
  const V ones(1);
  ANABRANCH_ROLLED
  for (int iteration = 0; iteration < kNewtonSteps; ++iteration) {
    // P at the trial point, and the slope there along the step that led to it.
    V q[n][n], error[n], worst(0), new_slope(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) error[j] = V(-1);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      V top = logits[i][0] + trial[0], sum = V(0);
      ANABRANCH_ROLLED
      for (int j = 1; j < n; ++j) top = max_of(top, logits[i][j] + trial[j]);
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) q[i][j] = exp_of(logits[i][j] + trial[j] - top), sum = sum + q[i][j];
      const V inverse = V(1) / sum;
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) q[i][j] = q[i][j] * inverse, error[j] = error[j] + q[i][j];
    }
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      worst = max_of(worst, abs_of(error[j]));
      new_slope = new_slope + error[j] * step[j];
    }
    // The slope at v was negative; beyond a quarter of it upwards the step went too far. Points within the tolerance
    // are good however they were found.
    const V rise = select(worst > V(tolerance), new_slope + V(0.25) * slope, V(-1));
    const auto good = select(finished > V(0), V(1), rise) <= V(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) v[j] = select(good, trial[j], v[j]);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) p[i][j] = select(good, q[i][j], p[i][j]);
    }
    finished = select(good, select(worst > V(tolerance), V(0), V(1)), finished);
    if (!any(finished <= V(0))) return;

    // Newton's step where the point was good, a shorter one where it was not.
    V w[n][n], b[n], newton[n], longest(0), inverse_rows[n];
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) inverse_rows[i] = ones, b[i] = V(0) - error[i];
    laplacian_weights<V, n>(q, inverse_rows, w);
    solve_laplacian<V, n>(w, b, newton);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) longest = max_of(longest, abs_of(newton[j]));
    size = select(good, V(30) / max_of(longest, V(30)), size * V(0.25));
    cuts = select(good, V(0), cuts + V(1));
    // Sinkhorn's own step where the cuts led nowhere, or where no weight is left and Newton's step is zero.
    const auto lost =
        select(good, select(longest > V(0), V(1), V(0)), select(finished > V(0), V(1), V(kMostCuts) - cuts)) <= V(0);
    slope = V(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      step[j] = select(good, newton[j], step[j]);
      slope = slope + select(good, error[j] * step[j], V(0));
    }
    // A point that was not good keeps the slope it began with, so it is recomputed from P, which belongs to v.
    V kept_slope(0), sums[n];
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      sums[j] = V(0);
      ANABRANCH_UNROLL
      for (int i = 0; i < n; ++i) sums[j] = sums[j] + p[i][j];
      kept_slope = kept_slope + (sums[j] - V(1)) * step[j];
    }
    slope = select(good, slope, kept_slope);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) trial[j] = v[j] + size * step[j];
    if (any(lost)) {
      slope = select(lost, V(-1e30), slope);  // this step is taken as it is
      ANABRANCH_UNROLL
      for (int j = 0; j < n; ++j) trial[j] = select(lost, v[j] - log_of(max_of(sums[j], V(1e-300))), trial[j]);
    }
  }
}

/// P of the logits. Where these span more than kNewtonRange, half of them are solved first, roughly, and twice that v
/// is where the whole begins; and so on for the halves.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void exact_sinkhorn(const V (&logits)[n][n], double tolerance, V (&p)[n][n]) {
  V v[n], high = logits[0][0], low = logits[0][0], scale(1), halvings(0);
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    v[i] = V(0);
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) high = max_of(high, logits[i][j]), low = min_of(low, logits[i][j]);
  }
  int stage = 0;
  ANABRANCH_ROLLED
  for (; stage < kMostHalvings && any((high - low) * scale > V(kNewtonRange)); ++stage) {
    const auto wide = (high - low) * scale > V(kNewtonRange);
    halvings = select(wide, halvings + V(1), halvings);
    scale = select(wide, scale * V(0.5), scale);
  }
  ANABRANCH_ROLLED
  for (; stage >= 0; --stage) {
    const V waits = V(stage) - halvings;  // > 0: this matrix begins at a later stage
    const auto doubles = halvings > V(stage);
    scale = select(doubles, scale * V(2), scale);
    V scaled[n][n];
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      v[i] = select(doubles, v[i] * V(2), v[i]);
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) scaled[i][j] = logits[i][j] * scale;
    }
    balance<V, n>(scaled, stage > 0 ? kRoughTolerance : tolerance, waits, v, p);
  }
}

/// d(loss)/d(logits) for d(loss)/dP, by the implicit function theorem.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void implicit_backward(const V (&p)[n][n], const V (&dp)[n][n], V (&dlogits)[n][n]) {
  V w[n][n], inverse_a[n], mean[n], b[n], v[n];
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    V a = V(0), sum = V(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) a = a + p[i][j], sum = sum + p[i][j] * dp[i][j];
    inverse_a[i] = V(1) / a;
    mean[i] = sum * inverse_a[i];
  }
  ANABRANCH_UNROLL
  for (int j = 0; j < n; ++j) {
    b[j] = V(0);
    ANABRANCH_UNROLL
    for (int i = 0; i < n; ++i) b[j] = b[j] + p[i][j] * (dp[i][j] - mean[i]);
  }
  laplacian_weights<V, n>(p, inverse_a, w);
  solve_laplacian<V, n>(w, b, v);
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    V shift = V(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) shift = shift + p[i][j] * v[j];
    const V u = mean[i] - shift * inverse_a[i];
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) dlogits[i][j] = p[i][j] * (dp[i][j] - u - v[j]);
  }
}

}  // namespace anabranch::detail
