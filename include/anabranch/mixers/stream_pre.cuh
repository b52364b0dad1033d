// The stream step's forward on the GPU (streams.hpp defines it), from its kernels.
//
// stream_pre: products and squares (stream_products.cuh); coefficients, a thread per token; u. Three launches. With
// `lag` u is made where the streams pass by, and the third is not needed. stream_post_pre: where the norm spans all
// streams and is not centred, the streams are mixed, written and multiplied in one pass; else post comes before.
//
// Bytes per token, N = nC numbers (n = 4, in C): pre reads 2N and writes C (9C), with lag N and C (5C); post_pre reads
// 2N + C and writes N + C (14C), lagged N + C and N + C (10C, the floor). Where a batch's streams fit in L2, 50 MB on
// Hopper, the second read of N costs no DRAM; a floor of 10C without lag needs a token's streams on chip beside a
// projection shared by 32 of them, hence clusters: not done. FLOPs and the arithmetic's floor: stream_products.cuh.
#pragma once

#include "anabranch/mixers/coefficients.cuh"
#include "anabranch/mixers/stream_mix.cuh"
#include "anabranch/mixers/stream_products.cuh"

namespace anabranch {

/// Numbers that stream_pre_cuda and stream_post_pre_cuda keep split weights and the parts of their products in.
template <class T>
int64_t stream_pre_scratch(const StreamShape& shape, const StreamProjection<T>& projection, bool hopper) {
  if (!projection.weight) return 0;
  const int64_t rows = shape.tokens * projection.segments, products = projection.num_products();
  const int64_t part = shape.width() / projection.segments;
  const int64_t streams = projection.segments == 1 ? shape.streams : 1;
  const int64_t splits = std::max(product_splits<T>(rows, products, part, streams, hopper),
                                  product_splits<T>(rows, products, part, 1, hopper));
  return detail::split_weight_size<T>(products, part) + splits * rows * (products + 3);
}

namespace detail {

/// The same numbers without the streams' type, which coefficients do not know.
template <class T>
StreamProjection<accumulate_t<T>> untyped(const StreamProjection<T>& in) {
  return {in.weight, in.scale, in.bias, in.segments, in.eps, in.centered, in.squash, in.map};
}

template <class T>
StreamProducts<T> stream_products(const StreamShape& shape, const StreamProjection<T>& projection, const T* x) {
  StreamProducts<T> out{};
  out.x = x;
  out.rows = shape.tokens * projection.segments;
  out.part = shape.width() / projection.segments;
  out.weight = projection.weight;
  out.products = projection.num_products();
  out.centered = projection.centered;
  out.streams = 1;
  return out;
}

/// True where the streams can be mixed or read on their way to the products. More than 4 of double would not fit.
template <class T>
bool passes_once(const StreamProjection<T>& projection) {
  return projection.weight && projection.segments == 1 && !projection.centered &&
         !(std::is_same_v<T, double> && projection.map.mixer.num_streams > 4);
}

/// The products where there is a weight, and the coefficients.
template <class T>
void stream_coefficients(const StreamShape& shape, const StreamProjection<T>& projection, StreamProducts<T> products,
                         accumulate_t<T>* scratch, bool hopper, accumulate_t<T>* coefficients,
                         accumulate_t<T>* statistics, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  if (projection.weight) {
    products.splits = product_splits<T>(products.rows, products.products, products.part, products.streams, hopper);
    products.parts = scratch + split_weight_size<T>(products.products, products.part);
    stream_products_cuda<T>(products, scratch, hopper, stream);
  }
  coefficients_cuda<Sum>(untyped(projection), {products.parts, products.splits, products.part}, shape.tokens,
                         statistics, products.parts ? statistics : nullptr, projection.num_statistics(), coefficients,
                         stream);
}

}  // namespace detail

/// stream_pre_reference, up to rounding. scratch: stream_pre_scratch() numbers, at a multiple of 16
/// bytes. hopper: the device runs the kernels for sm_90.
template <class T>
void stream_pre_cuda(const StreamShape& shape, const StreamProjection<T>& projection, const T* x,
                     const accumulate_t<T>* lag, accumulate_t<T>* scratch, bool hopper, T* u,
                     accumulate_t<T>* coefficients, accumulate_t<T>* statistics, cudaStream_t stream) {
  auto products = detail::stream_products(shape, projection, x);
  const bool once = lag && detail::passes_once(projection);
  if (once) products.streams = shape.streams, products.coefficients = lag, products.u = u;
  detail::stream_coefficients(shape, projection, products, scratch, hopper, coefficients, statistics, stream);
  if (!once) stream_read_cuda<T>(shape, x, lag ? lag : coefficients, u, stream);
}

/// stream_post_reference of one step and stream_pre_reference of the next, up to rounding.
template <class T>
void stream_post_pre_cuda(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                          const StreamProjection<T>& projection, bool lagged, accumulate_t<T>* scratch, bool hopper,
                          T* out, T* u, accumulate_t<T>* next_coefficients, accumulate_t<T>* next_statistics,
                          cudaStream_t stream) {
  if (!detail::passes_once(projection)) {
    stream_post_cuda<T>(shape, x, y, coefficients, out, stream);
    return stream_pre_cuda<T>(shape, projection, out, lagged ? coefficients : nullptr, scratch, hopper, u,
                              next_coefficients, next_statistics, stream);
  }
  auto products = detail::stream_products(shape, projection, x);
  products.streams = shape.streams;
  products.coefficients = coefficients;
  products.y = y;
  products.out = out;
  products.u = lagged ? u : nullptr;
  detail::stream_coefficients(shape, projection, products, scratch, hopper, next_coefficients, next_statistics, stream);
  if (!lagged) stream_read_cuda<T>(shape, out, next_coefficients, u, stream);
}

}  // namespace anabranch
