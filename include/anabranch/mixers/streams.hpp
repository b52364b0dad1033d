// The stream step of a hyper-connection: what it computes, and its plain-loop definition; streams_backward.hpp has the
// gradient.
//
// A token has n streams x [n, C], N = nC numbers. They are read in `segments` equal parts: one, or one per stream.
//   products   m[s, k] = r_s <x_s, weight_k>, r_s = 1 / sqrt(mean x_s^2 + eps)
//   logits     l = scale m + bias, or scale tanh(m) + bias
//   pre        p, q, H from the logits (coefficients.hpp); u = sum_j p_j x_j
//   post       x'_i = sum_j H_ij x_j + q_i y
// r is applied after the product, so that the streams are read once, and never to the bias. `centered` takes the mean
// from x under r; with weights whose rows sum to zero that is LayerNorm.
//
// Bytes per token: pre reads N and writes C numbers, post reads N + C and writes N; fused (post of one step with pre of
// the next) N + C read, N + C written. Backward, with the gradient of x' passed on as it is (StreamPreUpstream::dnext):
// post reads 2N + C and writes C, pre reads 2N + C and writes N. FLOPs: 2 K N forward, 4 K N backward for K logits
// (a segment's K where there are n segments), and (2 n^2 + 6 n) C for mixing. Floor: the larger of bytes / bandwidth
// and FLOPs / peak; at K = 24, bfloat16 and C = 2048 they are about equal on a CPU, while a GPU is bound by bytes.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "anabranch/mixers/coefficients.hpp"

namespace anabranch {

template <class T>
struct StreamProjection {
  using Sum = accumulate_t<T>;
  const Sum* weight;  // [num_products, N / segments]; null: the logits are the bias
  const Sum* scale;   // [num_logits]
  const Sum* bias;    // [num_logits]
  int64_t segments;
  double eps;
  bool centered, squash;  // squash: the tanh
  CoefficientMap map;

  ANABRANCH_HOST_DEVICE int64_t num_logits() const { return map.num_logits(); }
  /// Rows of weight.
  ANABRANCH_HOST_DEVICE int64_t num_products() const { return num_logits() / segments; }
  /// Numbers kept per token for the backward: the products, then r and the mean of every segment.
  ANABRANCH_HOST_DEVICE int64_t num_statistics() const { return num_logits() + 2 * segments; }
};

struct StreamShape {
  int64_t tokens, streams, channels;
  int64_t width() const { return streams * channels; }
};

namespace detail {

/// Calls f.operator()<n>() for the number of streams, which must be kMinStreams .. kMaxStreams.
template <class F>
decltype(auto) dispatch_streams(int64_t streams, F&& f) {
  switch (streams) {
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 5:
      return f.template operator()<5>();
    case 6:
      return f.template operator()<6>();
    case 7:
      return f.template operator()<7>();
    default:
      return f.template operator()<8>();
  }
}

/// The logit of product m and its derivative by m over scale.
template <class T, class V>
ANABRANCH_MATRIX_FUNCTION V stream_logit(const StreamProjection<T>& projection, int64_t k, V m) {
  return V(projection.scale[k]) * (projection.squash ? tanh_of(m) : m) + V(projection.bias[k]);
}

/// One token's logits; statistics [num_statistics()] are written where there is a weight.
template <class T>
std::vector<accumulate_t<T>> token_logits(const StreamProjection<T>& projection, int64_t width, const T* x,
                                          accumulate_t<T>* statistics) {
  using Sum = accumulate_t<T>;
  const int64_t logits = projection.num_logits(), part = width / projection.segments;
  std::vector<Sum> out(projection.bias, projection.bias + logits);
  if (!projection.weight) return out;
  const int64_t products = projection.num_products();
  for (int64_t s = 0; s < projection.segments; ++s) {
    const T* from = x + s * part;
    Sum mean = 0, square = 0;
    for (int64_t c = 0; projection.centered && c < part; ++c) mean += static_cast<Sum>(from[c]) / Sum(part);
    for (int64_t c = 0; c < part; ++c) {
      const Sum value = static_cast<Sum>(from[c]) - mean;
      square += value * value;
    }
    const Sum r = 1 / std::sqrt(square / Sum(part) + Sum(projection.eps));
    for (int64_t k = 0; k < products; ++k) {
      Sum sum = 0;
      for (int64_t c = 0; c < part; ++c) sum += static_cast<Sum>(from[c]) * projection.weight[k * part + c];
      const int64_t at = s * products + k;
      statistics[at] = r * sum;
      out[at] = stream_logit(projection, at, statistics[at]);
    }
    statistics[logits + 2 * s] = r;
    statistics[logits + 2 * s + 1] = mean;
  }
  return out;
}

}  // namespace detail

/// u [tokens, C], coefficients [tokens, n (n + 2)], statistics [tokens, num_statistics()]. lag [tokens, n (n + 2)] or
/// null: where it is given, u reads the streams by its p, the one before's (single-pass mHC); the own p is for the
/// next.
template <class T>
void stream_pre_reference(const StreamShape& shape, const StreamProjection<T>& projection, const T* x,
                          const accumulate_t<T>* lag, T* u, accumulate_t<T>* coefficients,
                          accumulate_t<T>* statistics) {
  using Sum = accumulate_t<T>;
  detail::dispatch_streams(shape.streams, [&]<int n>() {
    for (int64_t t = 0; t < shape.tokens; ++t, x += shape.width(), statistics += projection.num_statistics()) {
      const auto logits = detail::token_logits(projection, shape.width(), x, statistics);
      Sum p[n], q[n], h[n][n];
      detail::coefficients<Sum, n>(projection.map, logits, p, q, h);
      for (int j = 0; j < n; ++j) {
        coefficients[j] = p[j], coefficients[n + j] = q[j];
        for (int k = 0; k < n; ++k) coefficients[2 * n + n * j + k] = h[j][k];
      }
      const Sum* reads = lag ? lag + t * n * (n + 2) : coefficients;
      for (int64_t c = 0; c < shape.channels; ++c) {
        Sum sum = 0;
        for (int j = 0; j < n; ++j) sum += reads[j] * static_cast<Sum>(x[j * shape.channels + c]);
        u[t * shape.channels + c] = T(sum);
      }
      coefficients += n * (n + 2);
    }
  });
}

/// out [tokens, n, C].
template <class T>
void stream_post_reference(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                           T* out) {
  using Sum = accumulate_t<T>;
  const int64_t n = shape.streams, channels = shape.channels;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    const Sum *q = coefficients + t * n * (n + 2) + n, *h = q + n;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        Sum sum = q[i] * static_cast<Sum>(y[t * channels + c]);
        for (int64_t j = 0; j < n; ++j) sum += h[i * n + j] * static_cast<Sum>(x[(t * n + j) * channels + c]);
        out[(t * n + i) * channels + c] = T(sum);
      }
    }
  }
}

}  // namespace anabranch
