// The gated mean (gated_mean.hpp defines it) on the GPU: a thread for 16 bytes of a token's channels, through its
// streams in order. Bytes: the definition's, each number once; nothing is shared, so results are the same in any
// company. Floor: bytes / bandwidth; n loads of each operand are in flight where n is small.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/mixers/gated_mean.hpp"

namespace anabranch {

namespace detail {

inline constexpr unsigned kGatedMeanThreads = 256;

template <class T, int N>
__global__ void __launch_bounds__(kGatedMeanThreads, 1) gated_mean_kernel(GatedMean<T> problem, T* u) {
  using Sum = accumulate_t<T>;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kGatedMeanThreads + threadIdx.x;
  const int64_t pieces = problem.channels / N, token = piece / pieces;
  if (token >= problem.tokens) return;
  const int64_t first = token * problem.width() + piece % pieces * N;
  const Sum share = Sum(1) / static_cast<Sum>(problem.streams);
  Sum sums[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k] = 0;
#pragma unroll 4
  for (int64_t j = 0; j < problem.streams; ++j) {
    const auto x = Vector<T, N>::load(problem.x + first + j * problem.channels);
    const auto logits = Vector<T, N>::load(problem.logits + first + j * problem.channels);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sums[k] += sigmoid_of(static_cast<Sum>(logits.values[k])) * static_cast<Sum>(x.values[k]);
    }
  }
  Vector<T, N> out;
#pragma unroll
  for (int k = 0; k < N; ++k) out.values[k] = T(share * sums[k]);
  out.store(u + piece * N);
}

template <class T, int N>
__global__ void __launch_bounds__(kGatedMeanThreads, 1)
    gated_mean_backward_kernel(GatedMean<T> problem, const T* du, T* dx, T* dlogits) {
  using Sum = accumulate_t<T>;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kGatedMeanThreads + threadIdx.x;
  const int64_t pieces = problem.channels / N, token = piece / pieces;
  if (token >= problem.tokens) return;
  const int64_t first = token * problem.width() + piece % pieces * N;
  const Sum share = Sum(1) / static_cast<Sum>(problem.streams);
  const auto given = Vector<T, N>::load(du + piece * N);
#pragma unroll 4
  for (int64_t j = 0; j < problem.streams; ++j) {
    const int64_t at = first + j * problem.channels;
    const auto x = Vector<T, N>::load(problem.x + at), logits = Vector<T, N>::load(problem.logits + at);
    Vector<T, N> x_gradient, logits_gradient;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Sum gate = sigmoid_of(static_cast<Sum>(logits.values[k]));
      const Sum d = share * static_cast<Sum>(given.values[k]);
      x_gradient.values[k] = T(d * gate);
      logits_gradient.values[k] = T(d * static_cast<Sum>(x.values[k]) * gate * (1 - gate));
    }
    if (dx) x_gradient.store(dx + at);
    if (dlogits) logits_gradient.store(dlogits + at);
  }
}

template <class T>
unsigned gated_mean_blocks(const GatedMean<T>& problem, int64_t vector) {
  const int64_t pieces = problem.tokens * (problem.channels / vector);
  return grid_of((pieces + kGatedMeanThreads - 1) / kGatedMeanThreads);
}

}  // namespace detail

/// gated_mean_reference, up to rounding.
template <class T>
void gated_mean_cuda(const GatedMean<T>& problem, T* u, cudaStream_t stream) {
  if (problem.tokens * problem.channels == 0) return;
  dispatch_vector_width<T>(problem.channels, {problem.x, problem.logits, u}, [&]<int N>() {
    launch(detail::gated_mean_kernel<T, N>, dim3(detail::gated_mean_blocks(problem, N)),
           dim3(detail::kGatedMeanThreads), 0, stream, problem, u);
  });
}

/// gated_mean_backward_reference, up to rounding.
template <class T>
void gated_mean_backward_cuda(const GatedMean<T>& problem, const T* du, T* dx, T* dlogits, cudaStream_t stream) {
  if (problem.tokens * problem.channels == 0 || (!dx && !dlogits)) return;
  dispatch_vector_width<T>(problem.channels, {problem.x, problem.logits, du, dx, dlogits}, [&]<int N>() {
    launch(detail::gated_mean_backward_kernel<T, N>, dim3(detail::gated_mean_blocks(problem, N)),
           dim3(detail::kGatedMeanThreads), 0, stream, problem, du, dx, dlogits);
  });
}

}  // namespace anabranch
