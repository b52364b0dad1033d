// The gradient of the streams after the sub-layer on the GPU, and products of streams with one gradient.
//
// A warp per token and 4 of the streams after, a lane every 32nd piece of N channels: the products <dx'_i, x_j> and
// <dx'_i, y> in registers, and at the end the sums over the lanes by a fixed tree. Up to 4 streams dy, and dx where
// wanted, are made as the channels pass by; more streams would not fit, so that a second launch makes them.
//
// Bytes per token: (2n + 1) C numbers read, C written, (n + 1) C with dx; beyond 4 streams (n + 1) C and n C more are
// read. FLOPs: (2 n^2 + 4 n) C, 2 n^2 C more with dx. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/mixers/stream_mix.cuh"
#include "anabranch/mixers/streams_backward.hpp"

namespace anabranch {

namespace detail {

inline constexpr int kTokenWarps = 4, kDotRows = 4;

/// dy of N channels, and dx, from those of the streams after.
template <class T, int N, int kBound>
__device__ void store_post_gradients(const StreamShape& shape, const Vector<T, N> (&upstream)[kBound], int64_t t,
                                     int64_t c, const accumulate_t<T>* q, const accumulate_t<T>* h,
                                     const StreamPostGradients<T>& to) {
  using Sum = accumulate_t<T>;
  const int n = static_cast<int>(shape.streams);
  const auto combine = [&](const Sum* factors, int stride, T* at) {
    Sum sum[N] = {};
#pragma unroll
    for (int i = 0; i < kBound; ++i) {
      if (i >= n) break;
      const Sum factor = factors[i * stride];
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += factor * sum_of(upstream[i].values[k]);
    }
    Vector<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.values[k] = T(sum[k]);
    out.store(at);
  };
  if (to.y) combine(q, 1, to.y + t * shape.channels + c);
  for (int j = 0; to.x && j < n; ++j) combine(h + j, n, to.x + (t * n + j) * shape.channels + c);
}

template <class T, int N, int kBound>
__global__ void __launch_bounds__(256, 1)
    stream_post_gradients_kernel(StreamShape shape, const T* dout, const accumulate_t<T>* coefficients,
                                 StreamPostGradients<T> to) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int n = static_cast<int>(shape.streams);
  if (t >= shape.tokens) return;
  const auto* q = coefficients + t * n * (n + 2) + n;
  for (int64_t c = threadIdx.x * N; c < shape.channels; c += blockDim.x * N) {
    Vector<T, N> upstream[kBound];
    load_streams<T, N, kBound>(dout + t * n * shape.channels + c, shape.channels, n, upstream);
    store_post_gradients<T, N, kBound>(shape, upstream, t, c, q, q + n, to);
  }
}

template <class T, int N, int kBound>
__global__ void __launch_bounds__(32 * kTokenWarps, 1)
    stream_post_backward_kernel(StreamShape shape, const T* dout, const T* x, const T* y,
                                const accumulate_t<T>* coefficients, const accumulate_t<T>* added,
                                StreamPostGradients<T> to) {
  using Sum = accumulate_t<T>;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokenWarps + threadIdx.y, channels = shape.channels;
  const int n = static_cast<int>(shape.streams), lane = static_cast<int>(threadIdx.x), size = n * (n + 2);
  const int first = static_cast<int>(blockIdx.y) * kDotRows;
  if (t >= shape.tokens) return;
  const Sum* q = coefficients + t * size + n;
  Sum dq[kDotRows] = {}, dh[kDotRows][kBound] = {};
  for (int64_t c = lane * N; c < channels; c += 32 * N) {
    Vector<T, N> upstream[kDotRows];
    load_streams<T, N, kDotRows>(dout + (t * n + first) * channels + c, channels, n - first, upstream);
    const auto layer = Vector<T, N>::load(y + t * channels + c);
#pragma unroll
    for (int i = 0; i < kDotRows; ++i) {
#pragma unroll
      for (int k = 0; k < N; ++k) dq[i] += sum_of(upstream[i].values[k]) * sum_of(layer.values[k]);
    }
    if constexpr (kBound <= kDotRows) store_post_gradients<T, N, kBound>(shape, upstream, t, c, q, q + n, to);
#pragma unroll
    for (int j = 0; j < kBound; ++j) {
      if (j >= n) break;
      const auto stream = Vector<T, N>::load(x + (t * n + j) * channels + c);
#pragma unroll
      for (int i = 0; i < kDotRows; ++i) {
#pragma unroll
        for (int k = 0; k < N; ++k) dh[i][j] += sum_of(upstream[i].values[k]) * sum_of(stream.values[k]);
      }
    }
  }
  if (!to.dcoefficients) return;
  Sum* out = to.dcoefficients + t * size;
  const auto write = [&](int at, Sum value) {
    value = warp_sum(value);
    if (lane == 0) out[at] = value;
  };
#pragma unroll
  for (int i = 0; i < kDotRows; ++i) {
    if (first + i >= n) break;
    if (lane == 0) out[first + i] = added ? added[t * n + first + i] : Sum(0);
    write(n + first + i, dq[i]);
#pragma unroll
    for (int j = 0; j < kBound; ++j) {
      if (j < n) write((2 + first + i) * n + j, dh[i][j]);
    }
  }
}

/// dread[t, j] = <du, x_j>.
template <class T, int N, int kBound>
__global__ void __launch_bounds__(32 * kTokenWarps, 1)
    stream_dots_kernel(StreamShape shape, const T* du, const T* x, accumulate_t<T>* dread) {
  using Sum = accumulate_t<T>;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokenWarps + threadIdx.y, channels = shape.channels;
  const int n = static_cast<int>(shape.streams), lane = static_cast<int>(threadIdx.x);
  if (t >= shape.tokens) return;
  Sum dots[kBound] = {};
#pragma unroll 2
  for (int64_t c = lane * N; c < channels; c += 32 * N) {
    Vector<T, N> streams[kBound];
    const auto upstream = Vector<T, N>::load(du + t * channels + c);
    load_streams<T, N, kBound>(x + t * n * channels + c, channels, n, streams);
#pragma unroll
    for (int j = 0; j < kBound; ++j) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        dots[j] += sum_of(upstream.values[k]) * sum_of(streams[j].values[k]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kBound; ++j) {
    const Sum sum = warp_sum(dots[j]);
    if (j < n && lane == 0) dread[t * n + j] = sum;
  }
}

}  // namespace detail

/// stream_post_backward_reference, up to rounding. `added` [tokens, n] is added to p's part of dcoefficients; or null.
template <class T>
void stream_post_backward_cuda(const StreamShape& shape, const T* dout, const T* x, const T* y,
                               const accumulate_t<T>* coefficients, const accumulate_t<T>* added,
                               const StreamPostGradients<T>& to, cudaStream_t stream) {
  if (shape.tokens == 0) return;
  detail::dispatch_stream_bound<T>(shape, {dout, x, y, to.x, to.y}, [&]<int N, int kBound>() {
    const dim3 block(32, detail::kTokenWarps);
    dim3 grid = row_grid(shape.tokens, block);
    grid.y = kBound / detail::kDotRows;
    launch(detail::stream_post_backward_kernel<T, N, kBound>, grid, block, 0, stream, shape, dout, x, y, coefficients,
           added, to);
    if constexpr (kBound > detail::kDotRows) {
      if (!to.x && !to.y) return;
      const dim3 wide = row_block((shape.channels + N - 1) / N);
      launch(detail::stream_post_gradients_kernel<T, N, kBound>, row_grid(shape.tokens, wide), wide, 0, stream, shape,
             dout, coefficients, to);
    }
  });
}

template <class T>
void stream_dots_cuda(const StreamShape& shape, const T* du, const T* x, accumulate_t<T>* dread, cudaStream_t stream) {
  if (shape.tokens == 0) return;
  detail::dispatch_stream_bound<T>(shape, {du, x}, [&]<int N, int kBound>() {
    const dim3 block(32, detail::kTokenWarps);
    launch(detail::stream_dots_kernel<T, N, kBound>, row_grid(shape.tokens, block), block, 0, stream, shape, du, x,
           dread);
  });
}

}  // namespace anabranch
