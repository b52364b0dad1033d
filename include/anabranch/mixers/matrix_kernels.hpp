// Small matrices in the CPU's widest vectors, a lane per token; csrc/mixers/matrix_kernels_*.cpp.
//
// Bytes are those of logits and matrices, once; the floor is arithmetic. Sinkhorn's twenty iterations on 4 x 4 matrices
// are 1,300 multiply-adds and 160 divisions for sixteen matrices.
#pragma once

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/mixers/streams.hpp"

namespace anabranch {

/// The most matrices that a kernel works on at a time; its scratch is for these.
template <class Sum>
inline constexpr int kMatrixLanes = 64 / static_cast<int>(sizeof(Sum));

template <class Sum>
struct MatrixKernels {
  /// project() of every row of logits [count, num_logits] into matrices [count, n, n].
  void (*mix)(const Mixer& mixer, int64_t count, const Sum* logits, Sum* matrices, Sum* scratch);
  void (*mix_backward)(const Mixer& mixer, int64_t count, const Sum* dmatrices, const Sum* logits, const Sum* matrices,
                       Sum* dlogits, Sum* scratch);
  /// Coefficients [count, n (n + 2)] of tokens whose products are at statistics [count, num_statistics()].
  void (*coefficients)(const StreamProjection<Sum>& projection, int64_t count, const Sum* statistics, Sum* coefficients,
                       Sum* scratch);
  /// Products' gradients [count, num_logits()] from those of the coefficients; adds to dscale and dbias [num_logits()].
  void (*coefficients_backward)(const StreamProjection<Sum>& projection, int64_t count, const Sum* statistics,
                                const Sum* coefficients, const Sum* dcoefficients, Sum* dproducts, Sum* dscale,
                                Sum* dbias, Sum* scratch);
};

/// Numbers of scratch, 64-byte aligned, for maps of this many logits.
template <class Sum>
int64_t matrix_scratch(const Mixer& mixer, int64_t num_logits) {
  const int64_t n = mixer.num_streams;
  return kMatrixLanes<Sum> * (mixer.history_size() + 3 * num_logits + 2 * mixer.num_logits() + 4 * n * (n + 2));
}

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class Sum>
MatrixKernels<Sum> matrix_kernels_for();

// float64 is for checking gradients: portable vectors will do.
extern template MatrixKernels<double> matrix_kernels_for<CpuIsa::portable, double>();
extern template MatrixKernels<float> matrix_kernels_for<CpuIsa::portable, float>();
#if defined(__x86_64__)
extern template MatrixKernels<float> matrix_kernels_for<CpuIsa::avx2, float>();
extern template MatrixKernels<float> matrix_kernels_for<CpuIsa::avx512, float>();
#endif

template <class Sum>
MatrixKernels<Sum> matrix_kernels() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<Sum, float>) {
    if (cpu_isa() >= CpuIsa::avx512) return matrix_kernels_for<CpuIsa::avx512, Sum>();
    if (cpu_isa() >= CpuIsa::avx2) return matrix_kernels_for<CpuIsa::avx2, Sum>();
  }
#endif
  return matrix_kernels_for<CpuIsa::portable, Sum>();
}

}  // namespace anabranch
