// Sums of rows chosen by ids, and a row added to another, in the widest vectors there are. Both add in one order with
// nothing but additions, so every instruction set gives the same bits.
#pragma once

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/scalar.hpp"

namespace anabranch {

template <class T>
struct RowSumKernels {
  /// out [width] = x[ids[0]] + x[ids[1]] + ... in accumulate_t<T>.
  void (*sum)(const T* x, int64_t width, const int64_t* ids, int64_t count, T* out);
  /// sums [width] += row.
  void (*add)(const T* row, int64_t width, accumulate_t<T>* sums);
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
