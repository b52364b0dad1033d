// What the coefficients do with the streams on the GPU: u = sum_j p_j x_j, and the streams after the sub-layer.
//
// A thread takes N neighbouring channels (16 bytes) of all streams of a token, and several such pieces, so that a
// token's coefficients are read once for them. kBound is 4 or 8: the streams there is room for in registers.
//
// Bytes per token: u reads nC numbers and writes C; post reads (n + 1) C and writes nC. FLOPs: 2 n C and (2 n^2 + 2 n)
// C. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/core/fragment.cuh"
#include "anabranch/core/vector.cuh"
#include "anabranch/mixers/streams.hpp"

namespace anabranch {

namespace detail {

/// An element on its way into a sum. Half by one instruction: scalar.hpp's conversion is the portable one.
template <class T>
__device__ accumulate_t<T> sum_of(T value) {
  if constexpr (std::is_same_v<T, half>) {
    return widen(value);
  } else {
    return static_cast<accumulate_t<T>>(value);
  }
}

/// 8 channels of a row; zeros where there are none.
struct Channels {
  uint32_t pairs[4];
};
__device__ __forceinline__ Channels load_channels(const bfloat16* from, bool exists) {
  Channels out{};
  if (exists) load_pairs(from, out.pairs);
  return out;
}

/// Calls f.operator()<N>() with the widest accesses that rows of this width allow; double has no wide ones to compile.
template <class T, class F>
void dispatch_stream_width(int64_t width, std::initializer_list<const void*> pointers, F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    f.template operator()<1>();
  } else {
    dispatch_vector_width<T>(width, pointers, f);
  }
}

/// Calls f.operator()<N, kBound>() for the widest accesses that rows of C channels allow.
template <class T, class F>
void dispatch_stream_bound(const StreamShape& shape, std::initializer_list<const void*> pointers, F&& f) {
  dispatch_stream_width<T>(shape.channels, pointers, [&]<int N>() {
    shape.streams <= 4 ? f.template operator()<N, 4>() : f.template operator()<N, 8>();
  });
}

/// Streams of N channels from `from`, `stride` apart; those from n on are zero.
template <class T, int N, int kBound>
__device__ void load_streams(const T* from, int64_t stride, int n, Vector<T, N> (&to)[kBound]) {
#pragma unroll
  for (int j = 0; j < kBound; ++j) to[j] = j < n ? Vector<T, N>::load(from + j * stride) : Vector<T, N>{};
}

template <class T, int N, int kBound>
__global__ void __launch_bounds__(256, 1)
    stream_read_kernel(StreamShape shape, const T* x, const accumulate_t<T>* coefficients, T* u) {
  using Sum = accumulate_t<T>;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int n = static_cast<int>(shape.streams);
  if (t >= shape.tokens) return;
  Sum p[kBound];
#pragma unroll
  for (int j = 0; j < kBound; ++j) p[j] = j < n ? coefficients[t * n * (n + 2) + j] : Sum(0);
  for (int64_t c = threadIdx.x * N; c < shape.channels; c += blockDim.x * N) {
    Vector<T, N> streams[kBound], read;
    load_streams<T, N, kBound>(x + t * n * shape.channels + c, shape.channels, n, streams);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      Sum sum = 0;
#pragma unroll
      for (int j = 0; j < kBound; ++j) {
        if (j < n) sum += p[j] * sum_of(streams[j].values[k]);
      }
      read.values[k] = T(sum);
    }
    read.store(u + t * shape.channels + c);
  }
}

template <class T, int N, int kBound>
__global__ void __launch_bounds__(256, 1)
    stream_post_kernel(StreamShape shape, const T* x, const T* y, const accumulate_t<T>* coefficients, T* out) {
  using Sum = accumulate_t<T>;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int n = static_cast<int>(shape.streams);
  if (t >= shape.tokens) return;
  const Sum *q = coefficients + t * n * (n + 2) + n, *h = q + n;
  for (int64_t c = threadIdx.x * N; c < shape.channels; c += blockDim.x * N) {
    Vector<T, N> streams[kBound];
    load_streams<T, N, kBound>(x + t * n * shape.channels + c, shape.channels, n, streams);
    const auto added = Vector<T, N>::load(y + t * shape.channels + c);
#pragma unroll
    for (int i = 0; i < kBound; ++i) {
      if (i >= n) break;
      Sum sum[N];
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] = q[i] * sum_of(added.values[k]);
#pragma unroll
      for (int j = 0; j < kBound; ++j) {
        if (j >= n) break;
        const Sum weight = h[i * n + j];
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += weight * sum_of(streams[j].values[k]);
      }
      Vector<T, N> mixed;
#pragma unroll
      for (int k = 0; k < N; ++k) mixed.values[k] = T(sum[k]);
      mixed.store(out + (t * n + i) * shape.channels + c);
    }
  }
}

}  // namespace detail

/// u by the p of `coefficients` [tokens, n (n + 2)].
template <class T>
void stream_read_cuda(const StreamShape& shape, const T* x, const accumulate_t<T>* coefficients, T* u,
                      cudaStream_t stream) {
  if (shape.tokens == 0) return;
  detail::dispatch_stream_bound<T>(shape, {x, u}, [&]<int N, int kBound>() {
    const dim3 block = row_block((shape.channels + N - 1) / N);
    launch(detail::stream_read_kernel<T, N, kBound>, row_grid(shape.tokens, block), block, 0, stream, shape, x,
           coefficients, u);
  });
}

/// stream_post_reference, up to rounding.
template <class T>
void stream_post_cuda(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients, T* out,
                      cudaStream_t stream) {
  if (shape.tokens == 0) return;
  detail::dispatch_stream_bound<T>(shape, {x, y, out}, [&]<int N, int kBound>() {
    const dim3 block = row_block((shape.channels + N - 1) / N);
    launch(detail::stream_post_kernel<T, N, kBound>, row_grid(shape.tokens, block), block, 0, stream, shape, x, y,
           coefficients, out);
  });
}

}  // namespace anabranch
