// The stream step's backward on the GPU (streams.hpp defines it), from its kernels.
//
// stream_pre: 1. <du, x_j>, a warp per token; 2. the logits' gradients, a thread per token; 3. dx in one pass; 4.
// dweight in chunks of rows, added up; 5. the sums for scale and bias. post_pre: the streams between are made again
// from x and y; pre's gradient on them; post's on its result. Every sum has one order.
//
// Bytes per token (N = nC numbers): x three times, du twice, dx and dnext as far as given: 3N + 2C read, N more for
// each of these two, and N written. post_pre: N + C read and N written for the streams between, which are scratch, and
// 2N + C read and C written for post. Against the floor of one read of x: where a batch's streams fit in L2 the second
// and third cost no DRAM. FLOPs: 4 K N; dweight's half on tensor cores for bfloat16 on Hopper, the rest on the CUDA
// cores in float.
#pragma once

#include "anabranch/mixers/coefficients_backward.cuh"
#include "anabranch/mixers/stream_dweight.cuh"
#include "anabranch/mixers/stream_dx.cuh"
#include "anabranch/mixers/stream_post_backward.cuh"
#include "anabranch/mixers/stream_pre.cuh"

namespace anabranch {

/// Where stream_pre_backward_cuda keeps what its kernels hand on: numbers of each, some of which may be none.
struct StreamBackwardSizes {
  int64_t split_gradients, dread, dlogits, along, history, scale_bias_parts, weight_parts;

  int64_t sum() const { return split_gradients + dread + dlogits + along + history + scale_bias_parts + weight_parts; }
};

template <class T>
StreamBackwardSizes stream_backward_sizes(const StreamShape& shape, const StreamProjection<T>& projection,
                                          bool hopper) {
  const int64_t logits = projection.num_logits(), tokens = shape.tokens, rows = tokens * projection.segments;
  const int64_t part = shape.width() / projection.segments, products = projection.num_products();
  return {projection.weight ? split_gradients_size<T>(rows, products) : 0,
          tokens * shape.streams,
          tokens * logits,
          rows,
          coefficient_history(projection.map.mixer, tokens),
          2 * coefficient_blocks(tokens) * logits,
          projection.weight ? dweight_chunks<T>(rows, products, part, hopper) * products * part : 0};
}

/// stream_pre_backward_reference, up to rounding. scratch: stream_backward_sizes().sum() numbers, at a
/// multiple of 16 bytes. hopper: the device runs the kernels for sm_90.
template <class T>
void stream_pre_backward_cuda(const StreamShape& shape, const StreamProjection<T>& projection,
                              const StreamPreUpstream<T>& upstream, const T* x, const accumulate_t<T>* lag,
                              const accumulate_t<T>* coefficients, const accumulate_t<T>* statistics,
                              accumulate_t<T>* scratch, bool hopper, const StreamPreGradients<T>& gradients,
                              cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  const StreamBackwardSizes sizes = stream_backward_sizes(shape, projection, hopper);
  const auto take = [&scratch](int64_t count) { return std::exchange(scratch, scratch + count); };
  Sum* const split = take(sizes.split_gradients);
  Sum *const dread = take(sizes.dread), *const dlogits = take(sizes.dlogits), *const along = take(sizes.along);
  Sum *const history = take(sizes.history), *const sums = take(sizes.scale_bias_parts);
  Sum* const weight_parts = take(sizes.weight_parts);
  const int64_t segments = projection.segments, part = shape.width() / segments, logits = projection.num_logits();
  const bool learns = gradients.scale || gradients.bias;

  if (upstream.du) stream_dots_cuda<T>(shape, upstream.du, x, dread, stream);
  coefficients_backward_cuda<Sum>(
      detail::untyped(projection), {upstream.du ? dread : nullptr, lag != nullptr, upstream.dcoefficients},
      shape.tokens, part, coefficients, projection.weight ? statistics : nullptr, projection.num_statistics(),
      {dlogits, along, gradients.lag, history, learns ? sums : nullptr}, stream);
  if (gradients.x) {
    StreamInputGradient<T> problem{};
    problem.shape = shape;
    problem.x = x, problem.du = upstream.du, problem.dnext = upstream.dnext, problem.dx = upstream.dx;
    problem.reads = lag ? lag : coefficients, problem.coefficients = coefficients;
    problem.weight = projection.weight;
    problem.segments = segments, problem.products = projection.num_products();
    problem.num_kept = projection.num_statistics(), problem.statistics = statistics;
    problem.g = dlogits, problem.along = along;
    problem.to = gradients.x;
    stream_dx_cuda(problem, stream);
  }
  if (gradients.weight && projection.weight) {
    const int64_t rows = shape.tokens * segments, products = projection.num_products();
    stream_dweight_cuda<T>(
        {x, dlogits, rows, part, products, dweight_chunks<T>(rows, products, part, hopper), weight_parts}, split,
        hopper, gradients.weight, stream);
  }
  const int64_t blocks = coefficient_blocks(shape.tokens);
  if (gradients.scale) detail::sum_parts_cuda(sums, blocks, 2 * logits, logits, gradients.scale, stream);
  if (gradients.bias) detail::sum_parts_cuda(sums + logits, blocks, 2 * logits, logits, gradients.bias, stream);
}

/// The gradient of stream_post_pre_cuda; see stream_post_pre_backward_cpu. between [tokens, n, C]; scratch as above.
template <class T>
void stream_post_pre_backward_cuda(const StreamShape& shape, const T* x, const T* y,
                                   const accumulate_t<T>* coefficients, const StreamProjection<T>& projection,
                                   bool lagged, const StreamPreUpstream<T>& upstream,
                                   const accumulate_t<T>* next_coefficients, const accumulate_t<T>* next_statistics,
                                   T* between, accumulate_t<T>* scratch, bool hopper, const StreamPreGradients<T>& pre,
                                   const StreamPostGradients<T>& post, cudaStream_t stream) {
  stream_post_cuda<T>(shape, x, y, coefficients, between, stream);
  StreamPreGradients<T> gradients = pre;
  gradients.lag = nullptr;  // its only part that is not zero is dread, in scratch
  stream_pre_backward_cuda<T>(shape, projection, upstream, between, lagged ? coefficients : nullptr, next_coefficients,
                              next_statistics, scratch, hopper, gradients, stream);
  const auto* dread = scratch + stream_backward_sizes(shape, projection, hopper).split_gradients;
  stream_post_backward_cuda<T>(shape, pre.x, x, y, coefficients, lagged && upstream.du ? dread : nullptr, post, stream);
}

}  // namespace anabranch
