// The stream step of a hyper-connection, forward and backward: what it computes, and its plain-loop definition.
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
// the next) N + C read, N + C written. Backward, with the gradient of x' passed on as it is (StreamPreGradient::dnext):
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

/// Upstream gradients of pre; each may be null.
template <class T>
struct StreamPreUpstream {
  const T* du;                           // [tokens, C]
  const accumulate_t<T>* dcoefficients;  // [tokens, n (n + 2)]
  const T* dnext;                        // [tokens, n, C], of the streams after this step: adds H^T dnext
  const T* dx;                           // [tokens, n, C], of the streams themselves
};

/// Gradients that pre writes; each may be null.
template <class T>
struct StreamPreGradients {
  T* x;
  accumulate_t<T>*weight, *scale, *bias;
  accumulate_t<T>* lag;  // [tokens, n (n + 2)]; all but p's part is zero
};

/// Gradients that post writes; each may be null.
template <class T>
struct StreamPostGradients {
  T *x, *y;
  accumulate_t<T>* dcoefficients;  // p's part is zero
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

template <class T>
void stream_post_backward_reference(const StreamShape& shape, const T* dout, const T* x, const T* y,
                                    const accumulate_t<T>* coefficients, const StreamPostGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t n = shape.streams, channels = shape.channels;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    const Sum *q = coefficients + t * n * (n + 2) + n, *h = q + n;
    const T *dt = dout + t * n * channels, *xt = x + t * n * channels, *yt = y + t * channels;
    const auto dot = [channels](const T* left, const T* right) {
      Sum sum = 0;
      for (int64_t c = 0; c < channels; ++c) sum += static_cast<Sum>(left[c]) * static_cast<Sum>(right[c]);
      return sum;
    };
    for (int64_t i = 0; gradients.dcoefficients && i < n; ++i) {
      Sum* to = gradients.dcoefficients + t * n * (n + 2);
      to[i] = 0;
      to[n + i] = dot(dt + i * channels, yt);
      for (int64_t j = 0; j < n; ++j) to[2 * n + i * n + j] = dot(dt + i * channels, xt + j * channels);
    }
    for (int64_t c = 0; c < channels; ++c) {
      Sum dy = 0;
      for (int64_t i = 0; i < n; ++i) dy += q[i] * static_cast<Sum>(dt[i * channels + c]);
      if (gradients.y) gradients.y[t * channels + c] = T(dy);
      for (int64_t j = 0; gradients.x && j < n; ++j) {
        Sum dx = 0;
        for (int64_t i = 0; i < n; ++i) dx += h[i * n + j] * static_cast<Sum>(dt[i * channels + c]);
        gradients.x[(t * n + j) * channels + c] = T(dx);
      }
    }
  }
}

/// coefficients and statistics are the forward's. Every gradient that is not null is written whole.
template <class T>
void stream_pre_backward_reference(const StreamShape& shape, const StreamProjection<T>& projection,
                                   const StreamPreUpstream<T>& upstream, const T* x, const accumulate_t<T>* lag,
                                   const accumulate_t<T>* coefficients, const accumulate_t<T>* statistics,
                                   const StreamPreGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t channels = shape.channels, width = shape.width(), logits = projection.num_logits();
  const int64_t segments = projection.segments, part = width / segments;
  const int64_t products = projection.num_products();
  std::vector<Sum> dweight(projection.weight ? products * part : 0), dscale(logits), dbias(logits), l(logits);
  std::vector<Sum> dlogits(logits), dm(logits), dx(width), history(projection.map.mixer.history_size());
  detail::dispatch_streams(shape.streams, [&]<int n>() {
    for (int64_t t = 0; t < shape.tokens; ++t) {
      const T *xt = x + t * width, *du = upstream.du ? upstream.du + t * channels : nullptr;
      const Sum* own = coefficients + t * n * (n + 2);
      const Sum* kept = projection.weight ? statistics + t * projection.num_statistics() : nullptr;
      const Sum* reads = lag ? lag + t * n * (n + 2) : own;
      Sum* dlag = gradients.lag ? gradients.lag + t * n * (n + 2) : nullptr;
      Sum dp[n] = {}, dq[n] = {}, h[n][n], dh[n][n] = {};
      for (int j = 0; dlag && j < n * (n + 2); ++j) dlag[j] = 0;
      for (int j = 0; j < n; ++j) {
        for (int k = 0; k < n; ++k) h[j][k] = own[2 * n + j * n + k];
        Sum read = 0;
        for (int64_t c = 0; du && c < channels; ++c) {
          read += static_cast<Sum>(du[c]) * static_cast<Sum>(xt[j * channels + c]);
        }
        if (dlag) dlag[j] = read;
        if (!lag) dp[j] = read;
        if (!upstream.dcoefficients) continue;
        const Sum* given = upstream.dcoefficients + t * n * (n + 2);
        dp[j] += given[j], dq[j] = given[n + j];
        for (int k = 0; k < n; ++k) dh[j][k] = given[2 * n + j * n + k];
      }
      for (int64_t k = 0; k < logits; ++k) {
        l[k] = projection.weight ? detail::stream_logit(projection, k, kept[k]) : projection.bias[k];
      }
      detail::coefficients_backward<Sum, n>(projection.map, l.data(), dp, dq, h, dh,
                                            detail::History<Sum>{history.data(), 1}, dlogits.data());
      for (int64_t k = 0; k < logits; ++k) {
        const Sum m = kept ? kept[k] : Sum(0), tanh = detail::tanh_of(m);
        dbias[k] += dlogits[k];
        dscale[k] += dlogits[k] * (projection.squash ? tanh : m);
        if (kept) dm[k] = dlogits[k] * projection.scale[k] * (projection.squash ? 1 - tanh * tanh : Sum(1));
      }
      for (int64_t c = 0; c < width; ++c) {
        const int64_t stream = c / channels, channel = c % channels;
        Sum sum = upstream.dx ? static_cast<Sum>(upstream.dx[t * width + c]) : Sum(0);
        if (du) sum += reads[stream] * static_cast<Sum>(du[channel]);
        for (int64_t i = 0; upstream.dnext && i < n; ++i) {
          sum += own[2 * n + i * n + stream] * static_cast<Sum>(upstream.dnext[t * width + i * channels + channel]);
        }
        if (kept) {
          const int64_t s = c / part, in_part = c % part;
          const Sum r = kept[logits + 2 * s], mean = kept[logits + 2 * s + 1];
          Sum along = 0;
          for (int64_t k = 0; k < products; ++k) {
            const Sum d = dm[s * products + k];
            along += d * kept[s * products + k];
            sum += r * d * projection.weight[k * part + in_part];
            dweight[k * part + in_part] += r * d * static_cast<Sum>(xt[c]);
          }
          sum -= r * r / Sum(part) * along * (static_cast<Sum>(xt[c]) - mean);
        }
        if (gradients.x) gradients.x[t * width + c] = T(sum);
      }
    }
  });
  const auto copy = [](const std::vector<Sum>& from, Sum* to) {
    for (size_t i = 0; to && i < from.size(); ++i) to[i] = from[i];
  };
  copy(dweight, gradients.weight);
  copy(dscale, gradients.scale);
  copy(dbias, gradients.bias);
}

}  // namespace anabranch
