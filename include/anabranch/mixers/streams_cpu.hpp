// The stream step on the CPU.
#pragma once

#include "anabranch/mixers/streams.hpp"

namespace anabranch {

/// project() of `count` matrices: logits [count, num_logits] -> matrices [count, n, n].
template <class Sum>
void mix_matrix_cpu(const Mixer& mixer, int64_t count, const Sum* logits, Sum* matrices) {
  detail::dispatch_streams(mixer.num_streams, [&]<int n>() {
    for (int64_t b = 0; b < count; ++b) {
      Sum h[n][n];
      detail::project<Sum, n>(mixer, logits + b * mixer.num_logits(), h);
      for (int k = 0; k < n * n; ++k) matrices[b * n * n + k] = h[k / n][k % n];
    }
  });
}

template <class Sum>
void mix_matrix_backward_cpu(const Mixer& mixer, int64_t count, const Sum* dmatrices, const Sum* logits,
                             const Sum* matrices, Sum* dlogits) {
  std::vector<Sum> history(mixer.history_size());
  detail::dispatch_streams(mixer.num_streams, [&]<int n>() {
    for (int64_t b = 0; b < count; ++b) {
      Sum h[n][n], dh[n][n];
      for (int k = 0; k < n * n; ++k) {
        h[k / n][k % n] = matrices[b * n * n + k];
        dh[k / n][k % n] = dmatrices[b * n * n + k];
      }
      detail::project_backward<Sum, n>(mixer, logits + b * mixer.num_logits(), h, dh,
                                       detail::History<Sum>{history.data(), 1}, dlogits + b * mixer.num_logits());
    }
  });
}

template <class T>
void stream_pre_cpu(const StreamShape& shape, const StreamProjection<T>& projection, const T* x,
                    const accumulate_t<T>* lag, T* u, accumulate_t<T>* coefficients, accumulate_t<T>* statistics) {
  stream_pre_reference(shape, projection, x, lag, u, coefficients, statistics);
}

template <class T>
void stream_post_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients, T* out) {
  stream_post_reference(shape, x, y, coefficients, out);
}

/// stream_post of one step and stream_pre of the next. `lagged`: u reads by the coefficients of the first.
template <class T>
void stream_post_pre_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                         const StreamProjection<T>& projection, bool lagged, T* out, T* u,
                         accumulate_t<T>* next_coefficients, accumulate_t<T>* next_statistics) {
  stream_post_reference(shape, x, y, coefficients, out);
  stream_pre_reference(shape, projection, out, lagged ? coefficients : nullptr, u, next_coefficients, next_statistics);
}

template <class T>
void stream_pre_backward_cpu(const StreamShape& shape, const StreamProjection<T>& projection,
                             const StreamPreUpstream<T>& upstream, const T* x, const accumulate_t<T>* lag,
                             const accumulate_t<T>* coefficients, const accumulate_t<T>* statistics,
                             const StreamPreGradients<T>& gradients) {
  stream_pre_backward_reference(shape, projection, upstream, x, lag, coefficients, statistics, gradients);
}

template <class T>
void stream_post_backward_cpu(const StreamShape& shape, const T* dout, const T* x, const T* y,
                              const accumulate_t<T>* coefficients, const StreamPostGradients<T>& gradients) {
  stream_post_backward_reference(shape, dout, x, y, coefficients, gradients);
}

/// The gradient of stream_post_pre_cpu. The streams between are computed again from x and y. pre.x is the gradient of
/// those; it is needed. post.x is not written: the step before takes pre.x as its `dnext`. Where `lagged`, pre.lag is
/// not used: its part is in post.dcoefficients.
template <class T>
void stream_post_pre_backward_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                                  const StreamProjection<T>& projection, bool lagged,
                                  const StreamPreUpstream<T>& upstream, const accumulate_t<T>* next_coefficients,
                                  const accumulate_t<T>* next_statistics, const StreamPreGradients<T>& pre,
                                  const StreamPostGradients<T>& post) {
  using Sum = accumulate_t<T>;
  const int64_t streams = shape.streams, size = streams * (streams + 2);
  std::vector<T> between(shape.tokens * shape.width());
  std::vector<Sum> lag(lagged ? shape.tokens * size : 0);
  stream_post_reference(shape, x, y, coefficients, between.data());
  StreamPreGradients<T> gradients = pre;
  gradients.lag = lagged ? lag.data() : nullptr;
  stream_pre_backward_reference(shape, projection, upstream, between.data(), lagged ? coefficients : nullptr,
                                next_coefficients, next_statistics, gradients);
  stream_post_backward_reference(shape, pre.x, x, y, coefficients, post);
  for (size_t i = 0; post.dcoefficients && i < lag.size(); ++i) post.dcoefficients[i] += lag[i];
}

}  // namespace anabranch
