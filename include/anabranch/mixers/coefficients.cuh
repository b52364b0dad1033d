// Coefficients from logits on the GPU, a thread per token or matrix (coefficients.hpp defines them).
//
// The matrices of mix_matrix are coefficients without gates, so that one kernel serves both: the arithmetic of eight
// mixers is most of what there is to compile. A thread runs the definition's own arithmetic, with n^2 floats in
// registers for n <= 4 and in local memory above.
//
// A block takes 64 tokens. First it adds up the parts that their products came in (stream_products.cuh), in order, and
// writes the statistics; then a thread per token its coefficients.
//
// Bytes per token: parts, statistics and coefficients, some hundreds. FLOPs: 640 for 20 iterations of Sinkhorn at
// n = 4. Floor: for few tokens the latency of one such chain, some microseconds; for many, bytes / bandwidth.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/mixers/streams.hpp"

namespace anabranch {

/// What the products of rows (a token's segments) come in: parts [splits, rows, num_products + 3]. The last three are
/// the sums of (x - shift)^2 and of x - shift, and the shift.
template <class V>
struct ProductParts {
  const V* data;  // null: there are no products
  int64_t splits, part;
};

namespace detail {

inline constexpr int kCoefficientTokens = 64;

/// A token's logits from its products, or from the rows of mix_matrix, which have no scale.
template <class V>
struct TokenLogits {
  const StreamProjection<V>& projection;
  const V* products;  // null where there is no weight
  ANABRANCH_ONCE V operator[](int64_t k) const {
    if (!projection.scale) return products[k];
    return products ? stream_logit(projection, k, products[k]) : projection.bias[k];
  }
};

/// r of every row of a block, then the products times r.
template <class V>
__device__ void gather_statistics(const StreamProjection<V>& projection, const ProductParts<V>& from, int64_t tokens,
                                  int64_t first, V* statistics) {
  const int64_t segments = projection.segments, products = projection.num_products();
  const int64_t kept = projection.num_statistics(), logits = projection.num_logits(), width = products + 3;
  const int64_t rows = tokens * segments, begin = first * segments;
  const int64_t here = rows - begin < kCoefficientTokens * segments ? rows - begin : kCoefficientTokens * segments;
  const V part = static_cast<V>(from.part);
  for (int64_t i = threadIdx.x; i < here; i += kCoefficientTokens) {
    const V* at = from.data + (begin + i) * width + products;
    const V shift = at[2];
    V squares = V(0), sum = V(0);
#pragma unroll 8
    for (int64_t split = 0; split < from.splits; ++split, at += rows * width) squares += at[0], sum += at[1];
    if (projection.centered) squares = max_of(squares - sum * (sum / part), V(0));
    V* to = statistics + (first + i / segments) * kept + logits + 2 * (i % segments);
    to[0] = V(1) / sqrt_of(squares / part + static_cast<V>(projection.eps));
    to[1] = projection.centered ? shift + sum / part : V(0);
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < here * products; i += kCoefficientTokens) {
    const int64_t row = i / products, k = i % products;
    const V* at = from.data + (begin + row) * width + k;
    V sum = V(0);
#pragma unroll 8
    for (int64_t split = 0; split < from.splits; ++split, at += rows * width) sum += *at;
    V* to = statistics + (first + row / segments) * kept;
    to[row % segments * products + k] = sum * to[logits + 2 * (row % segments)];
  }
  __syncthreads();
}

/// statistics [tokens, num_statistics()], or the logits themselves where there is no scale.
template <class V, int n>
__global__ void __launch_bounds__(kCoefficientTokens, 1)
    coefficients_kernel(StreamProjection<V> projection, ProductParts<V> from, int64_t tokens, V* statistics,
                        const V* rows, int64_t row_size, V* out) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCoefficientTokens, t = first + threadIdx.x;
  if (from.data) gather_statistics(projection, from, tokens, first, statistics);
  if (t >= tokens) return;
  V p[n], q[n], h[n][n];
  const TokenLogits<V> logits{projection, rows ? rows + t * row_size : nullptr};
  coefficients<V, n>(projection.map, logits, p, q, h);
  const bool gated = projection.map.gates.kind != GateKind::none;
  V *const to = out + t * (gated ? n * (n + 2) : n * n), *const matrix = to + (gated ? 2 * n : 0);
  ANABRANCH_UNROLL
  for (int i = 0; i < n; ++i) {
    if (gated) to[i] = p[i], to[n + i] = q[i];
    ANABRANCH_UNROLL
    for (int j = 0; j < n; ++j) matrix[n * i + j] = h[i][j];
  }
}

template <class V>
StreamProjection<V> matrix_alone(const Mixer& mixer) {
  StreamProjection<V> out{};
  out.segments = 1;
  out.map.gates.kind = GateKind::none;
  out.map.mixer = mixer;
  return out;
}

}  // namespace detail

/// The coefficients of every token. With parts, their statistics are written first. rows [tokens, row_size] are what
/// the logits are made of: statistics, or the logits of mix_matrix; null where they are the bias.
template <class V>
void coefficients_cuda(const StreamProjection<V>& projection, const ProductParts<V>& from, int64_t tokens,
                       V* statistics, const V* rows, int64_t row_size, V* out, cudaStream_t stream) {
  if (tokens == 0) return;
  const unsigned grid = grid_of((tokens + detail::kCoefficientTokens - 1) / detail::kCoefficientTokens);
  detail::dispatch_streams(projection.map.mixer.num_streams, [&]<int n>() {
    launch(detail::coefficients_kernel<V, n>, grid, detail::kCoefficientTokens, 0, stream, projection, from, tokens,
           statistics, rows, row_size, out);
  });
}

/// project() of `count` matrices: logits [count, num_logits] -> matrices [count, n, n].
template <class V>
void mix_matrix_cuda(const Mixer& mixer, int64_t count, const V* logits, V* matrices, cudaStream_t stream) {
  coefficients_cuda<V>(detail::matrix_alone<V>(mixer), {}, count, nullptr, logits, mixer.num_logits(), matrices,
                       stream);
}

}  // namespace anabranch
