// The gradient of the streams after the sub-layer on the GPU, and products of streams with one gradient.
//
// A warp per token, a lane every 32nd piece of N channels in all streams: n (n + 1) products <dx'_i, x_j>, <dx'_i, y>
// in registers, and at the end the sums over the lanes by a fixed tree; dy, and dx where wanted, as the channels pass
// by. kBound is 4 or 8: the streams there is room for.
//
// Bytes per token: (2n + 1) C numbers read, C written, (n + 1) C with dx. FLOPs: (2 n^2 + 4 n) C, 2 n^2 C more with dx.
// Floor: bytes / bandwidth.
#pragma once

#include "anabranch/mixers/stream_mix.cuh"

namespace anabranch {

namespace detail {

inline constexpr int kTokenWarps = 4;

template <class T, int N, int kBound>
__global__ void __launch_bounds__(32 * kTokenWarps, 1)
    stream_post_backward_kernel(StreamShape shape, const T* dout, const T* x, const T* y,
                                const accumulate_t<T>* coefficients, const accumulate_t<T>* added,
                                StreamPostGradients<T> to) {
  using Sum = accumulate_t<T>;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kTokenWarps + threadIdx.y, channels = shape.channels;
  const int n = static_cast<int>(shape.streams), lane = static_cast<int>(threadIdx.x), size = n * (n + 2);
  if (t >= shape.tokens) return;
  const Sum *q = coefficients + t * size + n, *h = q + n;
  Sum dq[kBound] = {}, dh[kBound][kBound] = {};
  for (int64_t c = lane * N; c < channels; c += 32 * N) {
    Vector<T, N> upstream[kBound];
    load_streams<T, N, kBound>(dout + t * n * channels + c, channels, n, upstream);
    const auto layer = Vector<T, N>::load(y + t * channels + c);
    Vector<T, N> dy;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      Sum sum = 0;
#pragma unroll
      for (int i = 0; i < kBound; ++i) {
        const Sum d = static_cast<Sum>(upstream[i].values[k]);
        if (i < n) sum += q[i] * d;
        dq[i] += d * static_cast<Sum>(layer.values[k]);
      }
      dy.values[k] = T(sum);
    }
    if (to.y) dy.store(to.y + t * channels + c);
#pragma unroll
    for (int j = 0; j < kBound; ++j) {
      if (j >= n) break;
      const auto stream = Vector<T, N>::load(x + (t * n + j) * channels + c);
      Vector<T, N> dx;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        Sum sum = 0;
#pragma unroll
        for (int i = 0; i < kBound; ++i) {
          const Sum d = static_cast<Sum>(upstream[i].values[k]);
          if (to.x && i < n) sum += h[i * n + j] * d;
          dh[i][j] += d * static_cast<Sum>(stream.values[k]);
        }
        dx.values[k] = T(sum);
      }
      if (to.x) dx.store(to.x + (t * n + j) * channels + c);
    }
  }
  if (!to.dcoefficients) return;
  Sum* out = to.dcoefficients + t * size;
  const auto write = [&](int at, Sum value) {
    value = warp_sum(value);
    if (lane == 0) out[at] = value;
  };
#pragma unroll
  for (int i = 0; i < kBound; ++i) {
    if (i >= n) break;
    if (lane == 0) out[i] = added ? added[t * n + i] : Sum(0);
    write(n + i, dq[i]);
#pragma unroll
    for (int j = 0; j < kBound; ++j) {
      if (j < n) write((2 + i) * n + j, dh[i][j]);
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
        dots[j] += static_cast<Sum>(upstream.values[k]) * static_cast<Sum>(streams[j].values[k]);
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
    launch(detail::stream_post_backward_kernel<T, N, kBound>, row_grid(shape.tokens, block), block, 0, stream, shape,
           dout, x, y, coefficients, added, to);
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
