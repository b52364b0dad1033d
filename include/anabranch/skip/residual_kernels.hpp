// The work of the gated FFN on one row of the residual stream, in the CPU's widest vectors;
// csrc/skip/residual_kernels_*.cpp.
//
// Arithmetic is in accumulate_t<T>; a row is read from memory once and then from cache. Bytes: each row given, once.
#pragma once

#include <cstdint>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/skip/row_norm.hpp"

namespace anabranch {

template <class T>
struct ResidualKernels {
  using Sum = accumulate_t<T>;

  /// normalize_reference, up to rounding.
  void (*normalize)(const RowNorm<T>& norm, int64_t n, const T* x, T* normed);
  /// The norm's gradient of one row: dx[j] = (residual ? residual[j] : 0) + its part; adds to dweight and dbias.
  void (*normalize_backward)(const RowNorm<T>& norm, int64_t n, const T* x, const T* dnormed, const T* residual, T* dx,
                             Sum* dweight, Sum* dbias);
  /// y[j] = x[j] + base[j] + scale * sums[j]; what is null is left out.
  void (*add)(int64_t n, const T* x, const T* base, Sum scale, const Sum* sums, T* y);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class T>
ResidualKernels<T> residual_kernels_for();

#define ANABRANCH_RESIDUAL_KERNELS(isa, qualifier)                                    \
  qualifier template ResidualKernels<float> residual_kernels_for<isa, float>();       \
  qualifier template ResidualKernels<double> residual_kernels_for<isa, double>();     \
  qualifier template ResidualKernels<bfloat16> residual_kernels_for<isa, bfloat16>(); \
  qualifier template ResidualKernels<half> residual_kernels_for<isa, half>();

ANABRANCH_RESIDUAL_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_RESIDUAL_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_RESIDUAL_KERNELS(CpuIsa::avx512, extern)
#endif

template <class T>
ResidualKernels<T> residual_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return residual_kernels_for<CpuIsa::avx512, T>();
  if (cpu_isa() >= CpuIsa::avx2) return residual_kernels_for<CpuIsa::avx2, T>();
#endif
  return residual_kernels_for<CpuIsa::portable, T>();
}

}  // namespace anabranch
