// One matrix from its logits by whatever mixer, and the gradient: the choice among the methods, and what all share.
//
// These functions are the definition: instantiated for double they are what every kernel is compared with, and tests
// compare them in turn with compositions of torch's ops in float64. A logit that is not finite makes all of its matrix
// NaN, and no other.
#pragma once

#include "anabranch/mixers/cayley.hpp"
#include "anabranch/mixers/exact_sinkhorn.hpp"
#include "anabranch/mixers/grassmann.hpp"
#include "anabranch/mixers/permutation_mixture.hpp"
#include "anabranch/mixers/sinkhorn_backward.hpp"

namespace anabranch::detail {

/// The element of the logits that stands for [i, j].
template <int n>
ANABRANCH_HOST_DEVICE inline int logit_index(const Mixer& mixer, int i, int j) {
  return mixer.transposed_logits ? j * n + i : i * n + j;
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void load_logits(const Mixer& mixer, const Logits& logits, V (&to)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) to[i][j] = V(logits[logit_index<n>(mixer, i, j)]);
  }
}

/// The projection in its wide number, one part of V at a time.
template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void exact_sinkhorn_wide(const V (&logits)[n][n], double tolerance, V (&p)[n][n]) {
  using Wide = typename WideNumber<V>::type;
  ANABRANCH_ROLLED
  for (int part = 0; part < WideNumber<V>::parts; ++part) {
    Wide wide_logits[n][n], wide[n][n];
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) wide_logits[i][j] = WideNumber<V>::get(logits[i][j], part), wide[i][j] = Wide(0);
    }
    exact_sinkhorn<Wide, n>(wide_logits, tolerance, wide);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) WideNumber<V>::set(p[i][j], part, wide[i][j]);
    }
  }
}

/// h of the logits [mixer.num_logits()], before `transposed_matrix`.
template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void project_untransposed(const Mixer& mixer, const Logits& logits, V (&h)[n][n]) {
  V a[n][n];
  switch (mixer.kind) {
    case MixerKind::identity:
      ANABRANCH_ROLLED
      for (int i = 0; i < n; ++i) {
        ANABRANCH_ROLLED
        for (int j = 0; j < n; ++j) h[i][j] = V(i == j);
      }
      return;
    case MixerKind::permutation_mixture:
      return permutation_mixture<V, n>(mixer, logits, h);
    case MixerKind::grassmann:
      return grassmann<V, n>(mixer, logits, h);
    case MixerKind::unconstrained:
      return load_logits<V, n>(mixer, logits, h);
    case MixerKind::sinkhorn:
      load_logits<V, n>(mixer, logits, a);
      return Sinkhorn<V, n>{mixer, {nullptr, 0}}.forward(a, h);
    case MixerKind::exact_sinkhorn:
      load_logits<V, n>(mixer, logits, a);
      return exact_sinkhorn_wide<V, n>(a, mixer.tolerance, h);
    case MixerKind::cayley:
      load_logits<V, n>(mixer, logits, a);
      return cayley<V, n>(a, mixer.scale, h);
    case MixerKind::truncated_cayley: {
      V b[n][n];
      load_logits<V, n>(mixer, logits, a);
      skew<V, n>(a, mixer.scale, b);
      return truncated_cayley<V, n>(b, mixer.iterations, History<V>{nullptr, 0}, h);
    }
  }
}

template <class V, int n>
ANABRANCH_MATRIX_FUNCTION void transpose(V (&h)[n][n]) {
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = i + 1; j < n; ++j) {
      const V kept = h[i][j];
      h[i][j] = h[j][i];
      h[j][i] = kept;
    }
  }
}

/// From what the method gave to the result: the transpose, and NaN where a logit is not finite.
template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void finish_matrix(const Mixer& mixer, const Logits& logits, V (&h)[n][n]) {
  if (mixer.transposed_matrix) transpose<V, n>(h);
  V poison = V(0);  // x - x is NaN exactly where x is not finite
  ANABRANCH_ROLLED
  for (int64_t k = 0; k < mixer.num_logits(); ++k) poison = poison + (V(logits[k]) - V(logits[k]));
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) h[i][j] = h[i][j] + poison;
  }
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void project(const Mixer& mixer, const Logits& logits, V (&h)[n][n]) {
  project_untransposed<V, n>(mixer, logits, h);
  finish_matrix<V, n>(mixer, logits, h);
}

/// dlogits [mixer.num_logits()] of the upstream gradient dh; h is what project() gave. Both may be transposed in place.
/// history has room for mixer.history_size() numbers.
template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void project_backward(const Mixer& mixer, const Logits& logits, V (&h)[n][n], V (&dh)[n][n],
                                                const History<V>& history, const Out& dlogits) {
  if (mixer.transposed_matrix) transpose<V, n>(h), transpose<V, n>(dh);
  V a[n][n], da[n][n];
  switch (mixer.kind) {
    case MixerKind::identity:
    default:  // there is no other; said for compilers that doubt it
      return;
    case MixerKind::permutation_mixture:
      return permutation_mixture_backward<V, n>(mixer, logits, dh, dlogits);
    case MixerKind::grassmann:
      return grassmann_backward<V, n>(mixer, logits, dh, dlogits);
    case MixerKind::unconstrained:
      ANABRANCH_ROLLED
      for (int i = 0; i < n; ++i) {
        ANABRANCH_ROLLED
        for (int j = 0; j < n; ++j) da[i][j] = dh[i][j];
      }
      break;
    case MixerKind::sinkhorn:
      if (mixer.implicit_gradient) {
        implicit_backward<V, n>(h, dh, da);
      } else {
        load_logits<V, n>(mixer, logits, a);
        SinkhornGradient<V, n>{{mixer, history}}.backward(a, dh, da);
      }
      break;
    case MixerKind::exact_sinkhorn:
      implicit_backward<V, n>(h, dh, da);
      break;
    case MixerKind::cayley:
      cayley_backward<V, n>(h, mixer.scale, dh, da);
      break;
    case MixerKind::truncated_cayley:
      load_logits<V, n>(mixer, logits, a);
      truncated_cayley_backward<V, n>(a, mixer, history, dh, da);
      break;
  }
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) dlogits[logit_index<n>(mixer, i, j)] = da[i][j];
  }
}

}  // namespace anabranch::detail
