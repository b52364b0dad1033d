// The mean of a token's streams under a gate for every channel, forward and backward: what it computes, and its
// plain-loop definition.
//
//   u_c = (1 / n) sum_j sigmoid(logits_jc) x_jc
//
// Layout: x and logits [tokens, n, C], u [tokens, C], all of one type, any n >= 1. Arithmetic is in accumulate_t<T>,
// the streams in order. Bytes per token: 2 n C numbers read and C written; backward 2 n C + C read, 2 n C written.
// FLOPs: about 20 n C forward and 25 n C backward, most of them the exponential's. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/core/number.hpp"

namespace anabranch {

template <class T>
struct GatedMean {
  const T *x, *logits;
  int64_t tokens, streams, channels;

  ANABRANCH_HOST_DEVICE int64_t width() const { return streams * channels; }
};

/// u [tokens, C].
template <class T>
void gated_mean_reference(const GatedMean<T>& problem, T* u) {
  using Sum = accumulate_t<T>;
  for (int64_t t = 0; t < problem.tokens; ++t) {
    for (int64_t c = 0; c < problem.channels; ++c) {
      Sum sum = 0;
      for (int64_t j = 0; j < problem.streams; ++j) {
        const int64_t at = t * problem.width() + j * problem.channels + c;
        sum += detail::sigmoid_of(static_cast<Sum>(problem.logits[at])) * static_cast<Sum>(problem.x[at]);
      }
      u[t * problem.channels + c] = T(sum / static_cast<Sum>(problem.streams));
    }
  }
}

/// dx and dlogits [tokens, n, C] for du [tokens, C]; each may be null.
template <class T>
void gated_mean_backward_reference(const GatedMean<T>& problem, const T* du, T* dx, T* dlogits) {
  using Sum = accumulate_t<T>;
  for (int64_t at = 0; at < problem.tokens * problem.width(); ++at) {
    const int64_t token = at / problem.width(), channel = at % problem.channels;
    const Sum gate = detail::sigmoid_of(static_cast<Sum>(problem.logits[at]));
    const Sum d = static_cast<Sum>(du[token * problem.channels + channel]) / static_cast<Sum>(problem.streams);
    if (dx) dx[at] = T(d * gate);
    if (dlogits) dlogits[at] = T(d * static_cast<Sum>(problem.x[at]) * gate * (1 - gate));
  }
}

}  // namespace anabranch
