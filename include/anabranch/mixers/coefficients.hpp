// The coefficients of one token's stream step from its logits: how the sub-layer reads the streams (p), how its output
// is written to them (q), and how they mix (H):
//
//   u = sum_j p_j x_j        y = sub-layer(u)        x'_i = sum_j H_ij x_j + q_i y
//
// Layout of a token's coefficients: p [n], q [n], H [n, n]. Layout of its logits: those of p, of q, of the mixer one
// after another; with `per_stream`, stream j's own q, p and mixer logits after another, for each j in turn.
#pragma once

#include "anabranch/mixers/project.hpp"

namespace anabranch {

enum class GateKind {
  sigmoid,  // p = sigmoid + pre_eps, q = post_scale sigmoid + post_eps: mHC, mHC-lite, hy_v4
  softmax,  // n^2 logits each, over temperature: p the mean of the rows' softmaxes, q the sums of the columns': JPmHC
  linear,   // p, q are the logits: HC
  none,     // no p and q: the mixer's logits and matrix alone
};

struct Gates {
  GateKind kind = GateKind::sigmoid;
  double pre_eps = 0, post_scale = 2, post_eps = 0;
  double temperature = 1;
};

struct CoefficientMap {
  Gates gates;
  Mixer mixer;
  bool per_stream = false;

  ANABRANCH_HOST_DEVICE int64_t num_gate_logits() const {
    const int64_t n = mixer.num_streams;
    if (gates.kind == GateKind::none) return 0;
    return gates.kind == GateKind::softmax ? n * n : n;
  }
  ANABRANCH_HOST_DEVICE int64_t num_logits() const { return 2 * num_gate_logits() + mixer.num_logits(); }
  ANABRANCH_HOST_DEVICE int64_t num_coefficients() const {
    const int64_t n = mixer.num_streams;
    return n * (n + 2);
  }

  /// Where logit k of p, q or the mixer is among the token's.
  ANABRANCH_HOST_DEVICE int64_t pre_index(int64_t k) const { return per_stream ? k * row_size() + 1 : k; }
  ANABRANCH_HOST_DEVICE int64_t post_index(int64_t k) const {
    return per_stream ? k * row_size() : num_gate_logits() + k;
  }
  ANABRANCH_HOST_DEVICE int64_t mixer_index(int64_t k) const {
    if (!per_stream) return 2 * num_gate_logits() + k;
    const int64_t own = row_size() - 2;
    return k / own * row_size() + 2 + k % own;
  }

 private:
  ANABRANCH_HOST_DEVICE int64_t row_size() const { return num_logits() / mixer.num_streams; }
};

namespace detail {

/// The mixer's part of a token's logits.
template <class Logits>
struct MixerLogits {
  const CoefficientMap& map;
  const Logits& all;
  ANABRANCH_MATRIX_FUNCTION decltype(auto) operator[](int64_t k) const { return all[map.mixer_index(k)]; }
};

/// Softmax of n logits, `stride` apart from `first`.
template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void softmax(const Logits& logits, int first, int stride, double temperature, V (&to)[n]) {
  const V inverse_temperature(1 / temperature);
  V top = V(logits[first]), sum = V(0);
  ANABRANCH_ROLLED
  for (int k = 1; k < n; ++k) top = max_of(top, V(logits[first + k * stride]));
  ANABRANCH_ROLLED
  for (int k = 0; k < n; ++k) {
    to[k] = exp_of((V(logits[first + k * stride]) - top) * inverse_temperature);
    sum = sum + to[k];
  }
  const V inverse = V(1) / sum;
  ANABRANCH_ROLLED
  for (int k = 0; k < n; ++k) to[k] = to[k] * inverse;
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void gate_coefficients(const CoefficientMap& map, const Logits& logits, V (&p)[n],
                                                 V (&q)[n]) {
  const Gates& gates = map.gates;
  if (gates.kind == GateKind::softmax) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) p[j] = q[j] = V(0);
    ANABRANCH_ROLLED
    for (int k = 0; k < n; ++k) {
      V row[n], column[n];
      softmax<V, n>(logits, k * n, 1, gates.temperature, row);
      softmax<V, n>(logits, n * n + k, n, gates.temperature, column);
      ANABRANCH_ROLLED
      for (int j = 0; j < n; ++j) p[j] = p[j] + V(1.0 / n) * row[j], q[j] = q[j] + column[j];
    }
  } else if (gates.kind != GateKind::none) {
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      p[j] = V(logits[map.pre_index(j)]);
      q[j] = V(logits[map.post_index(j)]);
      if (gates.kind == GateKind::sigmoid) {
        p[j] = sigmoid_of(p[j]) + V(gates.pre_eps);
        q[j] = V(gates.post_scale) * sigmoid_of(q[j]) + V(gates.post_eps);
      }
    }
  }
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void coefficients(const CoefficientMap& map, const Logits& logits, V (&p)[n], V (&q)[n],
                                            V (&h)[n][n]) {
  gate_coefficients<V, n>(map, logits, p, q);
  project<V, n>(map.mixer, MixerLogits<Logits>{map, logits}, h);
}

/// dlogits[first + k stride] += the gradient of `softmax` for upstream `d`.
template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void softmax_backward(const Logits& logits, int first, int stride, double temperature,
                                                const V (&d)[n], const Out& dlogits) {
  V share[n], mean = V(0);
  softmax<V, n>(logits, first, stride, temperature, share);
  ANABRANCH_ROLLED
  for (int k = 0; k < n; ++k) mean = mean + share[k] * d[k];
  ANABRANCH_ROLLED
  for (int k = 0; k < n; ++k) dlogits[first + k * stride] = V(1 / temperature) * share[k] * (d[k] - mean);
}

/// The part of dlogits that belongs to p and q, for their gradients.
template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void gate_coefficients_backward(const CoefficientMap& map, const Logits& logits,
                                                          const V (&dp)[n], const V (&dq)[n], const Out& dlogits) {
  const Gates& gates = map.gates;
  if (gates.kind == GateKind::none) return;
  if (gates.kind == GateKind::softmax) {
    V mean[n];
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) mean[j] = V(1.0 / n) * dp[j];
    ANABRANCH_ROLLED
    for (int k = 0; k < n; ++k) {
      softmax_backward<V, n>(logits, k * n, 1, gates.temperature, mean, dlogits);
      softmax_backward<V, n>(logits, n * n + k, n, gates.temperature, dq, dlogits);
    }
    return;
  }
  ANABRANCH_UNROLL
  for (int j = 0; j < n; ++j) {
    V pre = dp[j], post = dq[j];
    if (gates.kind == GateKind::sigmoid) {
      const V s = sigmoid_of(V(logits[map.pre_index(j)])), t = sigmoid_of(V(logits[map.post_index(j)]));
      pre = pre * s * (V(1) - s);
      post = V(gates.post_scale) * post * t * (V(1) - t);
    }
    dlogits[map.pre_index(j)] = pre;
    dlogits[map.post_index(j)] = post;
  }
}

/// dlogits [num_logits()] for the gradients of p, q and H; h is the forward's. dh and h may be overwritten.
template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void coefficients_backward(const CoefficientMap& map, const Logits& logits, const V (&dp)[n],
                                                     const V (&dq)[n], V (&h)[n][n], V (&dh)[n][n],
                                                     const History<V>& history, const Out& dlogits) {
  gate_coefficients_backward<V, n>(map, logits, dp, dq, dlogits);
  project_backward<V, n>(map.mixer, MixerLogits<Logits>{map, logits}, h, dh, history, MixerLogits<Out>{map, dlogits});
}

}  // namespace detail
}  // namespace anabranch
