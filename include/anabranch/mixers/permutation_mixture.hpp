// Mixtures of permutation matrices (mHC-lite, arXiv 2601.05732): H = sum_k softmax(logits)_k P_k, doubly stochastic to
// rounding whatever the logits are. With all n! permutations every doubly stochastic matrix is one; with fewer, only
// those of a smaller polytope. Entries that name no column are passed over: on a GPU nobody can check them beforehand.
//
// FLOPs: n per permutation and one exponential; the logits are read three times.
#pragma once

#include "anabranch/core/number.hpp"
#include "anabranch/mixers/mixer.hpp"

namespace anabranch::detail {

/// Calls f(k, softmax(logits)_k) for every k in order.
template <class V, class Logits, class F>
ANABRANCH_MATRIX_FUNCTION void for_each_share(const Logits& logits, int64_t count, const F& f) {
  V top = logits[0], sum = V(0);
  ANABRANCH_ROLLED
  for (int64_t k = 1; k < count; ++k) top = max_of(top, V(logits[k]));
  ANABRANCH_ROLLED
  for (int64_t k = 0; k < count; ++k) sum = sum + exp_of(V(logits[k]) - top);
  const V inverse = V(1) / sum;
  ANABRANCH_ROLLED
  for (int64_t k = 0; k < count; ++k) f(k, exp_of(V(logits[k]) - top) * inverse);
}

template <class V, int n, class Logits>
ANABRANCH_MATRIX_FUNCTION void permutation_mixture(const Mixer& mixer, const Logits& logits, V (&h)[n][n]) {
  ANABRANCH_ROLLED
  for (int i = 0; i < n; ++i) {
    ANABRANCH_ROLLED
    for (int j = 0; j < n; ++j) h[i][j] = V(0);
  }
  for_each_share<V>(logits, mixer.num_permutations, [&](int64_t k, const V& share) {
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      const int j = mixer.permutations[k * n + i];
      if (j >= 0 && j < n) h[i][j] = h[i][j] + share;
    }
  });
}

template <class V, int n, class Logits, class Out>
ANABRANCH_MATRIX_FUNCTION void permutation_mixture_backward(const Mixer& mixer, const Logits& logits,
                                                            const V (&dh)[n][n], const Out& dlogits) {
  const auto value = [&](int64_t k) {
    V sum = V(0);
    ANABRANCH_ROLLED
    for (int i = 0; i < n; ++i) {
      const int j = mixer.permutations[k * n + i];
      if (j >= 0 && j < n) sum = sum + dh[i][j];
    }
    return sum;
  };
  V mean = V(0);
  for_each_share<V>(logits, mixer.num_permutations, [&](int64_t k, const V& share) { mean = mean + share * value(k); });
  for_each_share<V>(logits, mixer.num_permutations,
                    [&](int64_t k, const V& share) { dlogits[k] = share * (value(k) - mean); });
}

}  // namespace anabranch::detail
