// The gated mean (gated_mean.hpp defines it) on the CPU: a token at a time, in the widest vectors there are, on several
// threads. Bytes: the definition's, each number once; the exponential and the traffic cost about the same on one core.
#pragma once

#include <algorithm>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/mixers/gated_mean.hpp"

namespace anabranch {

template <class T>
struct GatedMeanKernels {
  /// u [C] of one token's x and logits [streams, C].
  void (*forward)(int64_t streams, int64_t channels, const T* x, const T* logits, T* u);
  /// dx and dlogits of one token for du [C]; one of them may be null.
  void (*backward)(int64_t streams, int64_t channels, const T* du, const T* x, const T* logits, T* dx, T* dlogits);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class T>
GatedMeanKernels<T> gated_mean_kernels_for();

#define ANABRANCH_GATED_MEAN_KERNELS(isa, qualifier)                                     \
  qualifier template GatedMeanKernels<float> gated_mean_kernels_for<isa, float>();       \
  qualifier template GatedMeanKernels<double> gated_mean_kernels_for<isa, double>();     \
  qualifier template GatedMeanKernels<bfloat16> gated_mean_kernels_for<isa, bfloat16>(); \
  qualifier template GatedMeanKernels<half> gated_mean_kernels_for<isa, half>();

ANABRANCH_GATED_MEAN_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_GATED_MEAN_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_GATED_MEAN_KERNELS(CpuIsa::avx512, extern)
#endif

template <class T>
GatedMeanKernels<T> gated_mean_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return gated_mean_kernels_for<CpuIsa::avx512, T>();
  if (cpu_isa() >= CpuIsa::avx2) return gated_mean_kernels_for<CpuIsa::avx2, T>();
#endif
  return gated_mean_kernels_for<CpuIsa::portable, T>();
}

namespace detail {

/// f(token) for every token, on as many threads as their numbers are worth.
template <class T, class F>
void for_each_token(const GatedMean<T>& problem, F&& f) {
  parallel_for(problem.tokens, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, problem.width())),
               [&](int64_t begin, int64_t end) {
                 for (int64_t token = begin; token < end; ++token) f(token);
               });
}

}  // namespace detail

/// gated_mean_reference, up to rounding.
template <class T>
void gated_mean_cpu(const GatedMean<T>& problem, T* u) {
  const auto kernels = gated_mean_kernels<T>();
  detail::for_each_token(problem, [&](int64_t token) {
    const int64_t at = token * problem.width();
    kernels.forward(problem.streams, problem.channels, problem.x + at, problem.logits + at,
                    u + token * problem.channels);
  });
}

/// gated_mean_backward_reference, up to rounding.
template <class T>
void gated_mean_backward_cpu(const GatedMean<T>& problem, const T* du, T* dx, T* dlogits) {
  if (!dx && !dlogits) return;
  const auto kernels = gated_mean_kernels<T>();
  detail::for_each_token(problem, [&](int64_t token) {
    const int64_t at = token * problem.width();
    kernels.backward(problem.streams, problem.channels, du + token * problem.channels, problem.x + at,
                     problem.logits + at, dx ? dx + at : nullptr, dlogits ? dlogits + at : nullptr);
  });
}

}  // namespace anabranch
