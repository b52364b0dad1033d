// The gradient of the coefficients on the GPU, a thread per token or matrix (coefficients.hpp defines it).
//
// A block takes 64 tokens: a thread makes a token's dlogits; then, column by column, the block makes their sums over
// its tokens, in order, for scale and bias, and puts the products' gradients in their place. The unrolled gradient
// writes its iterates to global memory, number by number, so that the lanes of a warp write side by side, for
// history_slots() tokens at a time: the scratch does not grow with the batch.
//
// Bytes per token: logits, statistics and coefficients, some hundreds, and 2 history_size() numbers for the unrolled
// gradient, mostly in L2. FLOPs: about 2500 for 20 iterations of Sinkhorn at n = 4. Floor: for few tokens the latency
// of one such chain, some tens of microseconds; for many, bytes / bandwidth.
#pragma once

#include <algorithm>

#include "anabranch/mixers/coefficients.cuh"

namespace anabranch {

/// Upstream gradients of the coefficients.
template <class V>
struct CoefficientUpstream {
  const V* dread;          // [tokens, n], of the p that read the streams; or null
  bool lagged;             // that p was the one before's
  const V* dcoefficients;  // [tokens, n (n + 2)], or [tokens, n, n] without gates; or null
};

template <class V>
struct CoefficientGradients {
  V* dlogits;           // [tokens, num_logits]; with a weight, at last of the products without r: r dm
  V* along;             // [tokens, segments], with a weight: how much of the streams themselves is subtracted
  V* lag;               // [tokens, n (n + 2)] or null
  V* history;           // coefficient_history(...) numbers
  V* scale_bias_parts;  // [coefficient_blocks(tokens), 2, num_logits] or null
};

namespace detail {

/// Tokens whose iterates are kept at a time, a multiple of a block's.
inline int64_t history_slots(const Mixer& mixer, int64_t tokens) {
  const int64_t blocks = (tokens + kCoefficientTokens - 1) / kCoefficientTokens, size = mixer.history_size();
  if (size == 0) return blocks * kCoefficientTokens;
  return std::min(blocks, std::max<int64_t>(64, (int64_t{1} << 24) / (size * kCoefficientTokens))) * kCoefficientTokens;
}

/// One token's dlogits, and what the streams' gradient wants of them.
template <class V, int n>
__device__ void token_backward(const StreamProjection<V>& projection, const CoefficientUpstream<V>& upstream, int64_t t,
                               const V* own, const V* products, const History<V>& history,
                               const CoefficientGradients<V>& to) {
  const bool gated = projection.map.gates.kind != GateKind::none;
  const int64_t num_logits = projection.num_logits(), size = gated ? n * (n + 2) : n * n;
  V dp[n], dq[n], h[n][n], dh[n][n];
  const V* given = upstream.dcoefficients ? upstream.dcoefficients + t * size : nullptr;
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    const V read = upstream.dread ? upstream.dread[t * n + i] : V(0);
    if (to.lag) {
      to.lag[t * size + i] = read;
      ANABRANCH_ROLLED
      for (int k = 1; k < n + 2; ++k) to.lag[t * size + k * n + i] = V(0);
    }
    dp[i] = (gated && given ? given[i] : V(0)) + (upstream.lagged ? V(0) : read);
    dq[i] = gated && given ? given[n + i] : V(0);
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) {
      const int64_t at = size - n * n + n * i + j;
      h[i][j] = own[t * size + at];
      dh[i][j] = given ? given[at] : V(0);
    }
  }
  V* dlogits = to.dlogits + t * num_logits;
  coefficients_backward<V, n>(projection.map, TokenLogits<V>{projection, products}, dp, dq, h, dh, history, dlogits);
  if (!projection.weight) return;
  const int64_t per_segment = projection.num_products();
  for (int64_t s = 0; s < projection.segments; ++s) {
    V along = V(0);
    for (int64_t k = s * per_segment; k < (s + 1) * per_segment; ++k) {
      const V m = products[k], tanh = projection.squash ? tanh_of(m) : V(0);
      along += dlogits[k] * projection.scale[k] * (V(1) - tanh * tanh) * m;
    }
    to.along[t * projection.segments + s] = along;
  }
}

template <class V, int n>
__global__ void __launch_bounds__(kCoefficientTokens, 1)
    coefficients_backward_kernel(StreamProjection<V> projection, CoefficientUpstream<V> upstream, int64_t tokens,
                                 int64_t part, const V* coefficients, const V* rows, int64_t row_size,
                                 CoefficientGradients<V> to) {
  const int64_t slots = static_cast<int64_t>(gridDim.x) * kCoefficientTokens, num_logits = projection.num_logits();
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kCoefficientTokens + threadIdx.x;
  for (int64_t tile = blockIdx.x; tile * kCoefficientTokens < tokens; tile += gridDim.x) {
    const int64_t first = tile * kCoefficientTokens, t = first + threadIdx.x;
    if (t < tokens) {
      token_backward<V, n>(projection, upstream, t, coefficients, rows ? rows + t * row_size : nullptr,
                           {to.history + slot, slots}, to);
    }
    if (!projection.weight && !to.scale_bias_parts) continue;
    __syncthreads();
    const int64_t end = first + kCoefficientTokens < tokens ? first + kCoefficientTokens : tokens;
    for (int64_t k = threadIdx.x; k < num_logits; k += kCoefficientTokens) {
      V scale = V(0), bias = V(0);
      for (int64_t row = first; row < end; ++row) {
        V& dlogit = to.dlogits[row * num_logits + k];
        const V d = dlogit, m = rows ? rows[row * row_size + k] : V(0), tanh = projection.squash ? tanh_of(m) : V(0);
        bias += d;
        scale += d * (projection.squash ? tanh : m);
        if (!projection.weight) continue;
        const int64_t s = k / projection.num_products();
        const V r = rows[row * row_size + num_logits + 2 * s];
        dlogit = r * d * projection.scale[k] * (V(1) - tanh * tanh);
        if (k % projection.num_products() == 0) to.along[row * projection.segments + s] *= r * r / static_cast<V>(part);
      }
      if (!to.scale_bias_parts) continue;
      to.scale_bias_parts[2 * tile * num_logits + k] = scale;
      to.scale_bias_parts[(2 * tile + 1) * num_logits + k] = bias;
    }
  }
}

}  // namespace detail

/// Blocks of tokens, the first size of CoefficientGradients::scale_bias_parts.
inline int64_t coefficient_blocks(int64_t tokens) {
  return (tokens + detail::kCoefficientTokens - 1) / detail::kCoefficientTokens;
}
/// Numbers of CoefficientGradients::history.
inline int64_t coefficient_history(const Mixer& mixer, int64_t tokens) {
  return mixer.history_size() * detail::history_slots(mixer, tokens);
}

/// rows [tokens, row_size]: statistics, or the logits of mix_matrix. part: the streams' numbers in a segment.
template <class V>
void coefficients_backward_cuda(const StreamProjection<V>& projection, const CoefficientUpstream<V>& upstream,
                                int64_t tokens, int64_t part, const V* coefficients, const V* rows, int64_t row_size,
                                const CoefficientGradients<V>& to, cudaStream_t stream) {
  if (tokens == 0) return;
  const Mixer& mixer = projection.map.mixer;
  const unsigned grid = grid_of(detail::history_slots(mixer, tokens) / detail::kCoefficientTokens);
  detail::dispatch_streams(mixer.num_streams, [&]<int n>() {
    launch(detail::coefficients_backward_kernel<V, n>, grid, detail::kCoefficientTokens, 0, stream, projection,
           upstream, tokens, part, coefficients, rows, row_size, to);
  });
}

/// project_backward of `count` matrices; history: coefficient_history(mixer, count) numbers.
template <class V>
void mix_matrix_backward_cuda(const Mixer& mixer, int64_t count, const V* dmatrices, const V* logits, const V* matrices,
                              V* history, V* dlogits, cudaStream_t stream) {
  coefficients_backward_cuda<V>(detail::matrix_alone<V>(mixer), {nullptr, false, dmatrices}, count, 1, matrices, logits,
                                mixer.num_logits(), {dlogits, nullptr, nullptr, history, nullptr}, stream);
}

}  // namespace anabranch
