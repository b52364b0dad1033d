// Mixers: maps from logits to a small matrix H [n, n] that mixes n residual streams. Which ones there are.
//
// H[i, j] weighs input stream j in output stream i. All arithmetic is in accumulate_t of the streams' type.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

inline constexpr int kMinStreams = 2;
inline constexpr int kMaxStreams = 8;

enum class MixerKind {
  identity,             // H = I; no logits
  unconstrained,        // H = logits
  sinkhorn,             // `iterations` times columns, then rows, of exp(logits) divided by their sums
  exact_sinkhorn,       // the doubly stochastic limit of that, by Newton's method, to `tolerance`
  permutation_mixture,  // sum_k softmax(logits)_k P_k
  cayley,               // (I - B)^-1 (I + B), B = scale / 2 (G - G^T), G = logits
  truncated_cayley,     // Y_0 = I + 2 B, `iterations` times Y <- I + B (I + Y)
  grassmann,            // the projector on the span of the columns of logits [n, rank]
};

/// How many iterations of sinkhorn and truncated_cayley there may be.
inline constexpr int kMaxMixerIterations = 1000;

struct Mixer {
  MixerKind kind = MixerKind::identity;
  int num_streams = 4;
  int iterations = 0;
  int rank = 0;
  double eps = 0;        // sinkhorn: added to the entries after the first division, and to every later sum
  double tolerance = 0;  // exact_sinkhorn: largest error of a column's sum
  double scale = 1;
  /// Sinkhorn's gradient: of the limit, with the sums of H kept as they are, instead of the iterations'.
  bool implicit_gradient = false;
  /// Read logits[j, i] for [i, j], and write H^T: together, rows come before columns.
  bool transposed_logits = false, transposed_matrix = false;
  const int32_t* permutations =
      nullptr;  // [num_permutations, n]: row i of P_k has its one in column permutations[k, i]
  int64_t num_permutations = 0;

  ANABRANCH_HOST_DEVICE int64_t num_logits() const {
    const int64_t n = num_streams;
    switch (kind) {
      case MixerKind::identity:
        return 0;
      case MixerKind::permutation_mixture:
        return num_permutations;
      case MixerKind::grassmann:
        return n * rank;
      default:
        return n * n;
    }
  }

  /// Numbers that the unrolled gradient of one matrix keeps while it is computed.
  ANABRANCH_HOST_DEVICE int64_t history_size() const {
    const int64_t n = num_streams;
    if (kind == MixerKind::sinkhorn && !implicit_gradient) return 2 * n * iterations;
    return kind == MixerKind::truncated_cayley ? n * n * iterations : 0;
  }
};

}  // namespace anabranch
