// The gradient of the stream step (streams.hpp), and its plain-loop definition.
//
// post hands the gradient of x' on, and pre takes it as `dnext`: it applies H while it writes the streams' gradient, so
// that this is written once a step.
#pragma once

#include "anabranch/mixers/streams.hpp"

namespace anabranch {

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
  accumulate_t<T>* lag;  // [tokens, n (n + 2)], where there is a lag; all but p's part is zero
};

/// Gradients that post writes; each may be null.
template <class T>
struct StreamPostGradients {
  T *x, *y;
  accumulate_t<T>* dcoefficients;  // p's part is zero
};

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
