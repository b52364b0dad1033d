// Sums of rows chosen by ids, a row added to another, and products of rows, in the widest vectors there are. What has
// no weights adds in one order with nothing but additions, so every instruction set gives the same bits; with weights,
// one that fuses a multiplication into the addition rounds once less.
#pragma once

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/scalar.hpp"

namespace anabranch {

template <class T>
struct RowSumKernels {
  /// out [width] = x[ids[0]] + x[ids[1]] + ... in accumulate_t<T>.
  void (*sum)(const T* x, int64_t width, const int64_t* ids, int64_t count, T* out);
  /// out [width] = weights[0] * x[ids[0]] + weights[1] * x[ids[1]] + ...
  void (*weighted_sum)(const T* x, int64_t width, const int64_t* ids, const T* weights, int64_t count, T* out);
  /// sums [width] += row.
  void (*add)(const T* row, int64_t width, accumulate_t<T>* sums);
  /// sums [width] += weight * row.
  void (*add_weighted)(const T* row, int64_t width, T weight, accumulate_t<T>* sums);
  /// out [count]: out[k] = row . x[ids[k]].
  void (*dots)(const T* row, const T* x, int64_t width, const int64_t* ids, int64_t count, T* out);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class T>
RowSumKernels<T> row_sum_kernels_for();

#define ANABRANCH_ROW_SUM_KERNELS(isa, qualifier)                                  \
  qualifier template RowSumKernels<float> row_sum_kernels_for<isa, float>();       \
  qualifier template RowSumKernels<double> row_sum_kernels_for<isa, double>();     \
  qualifier template RowSumKernels<bfloat16> row_sum_kernels_for<isa, bfloat16>(); \
  qualifier template RowSumKernels<half> row_sum_kernels_for<isa, half>();

ANABRANCH_ROW_SUM_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_ROW_SUM_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_ROW_SUM_KERNELS(CpuIsa::avx512, extern)
#endif

template <class T>
RowSumKernels<T> row_sum_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return row_sum_kernels_for<CpuIsa::avx512, T>();
  if (cpu_isa() >= CpuIsa::avx2) return row_sum_kernels_for<CpuIsa::avx2, T>();
#endif
  return row_sum_kernels_for<CpuIsa::portable, T>();
}

}  // namespace anabranch
