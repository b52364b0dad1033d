// The element-wise work of the expert FFN on one row, in the CPU's widest vectors; csrc/experts/row_kernels_*.cpp.
//
// Sums and arithmetic are in accumulate_t<T>; rows of T are converted as they are read or written. All rows have unit
// stride and are in cache: these loops are bound by arithmetic (one exp per feature), not by memory.
#pragma once

#include <cstdint>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/scalar.hpp"
#include "anabranch/experts/activation.hpp"

namespace anabranch {

template <class T>
struct RowKernels {
  using Sum = accumulate_t<T>;

  /// to[j] = T(from[j]).
  void (*store)(int64_t n, const Sum* from, T* to);
  /// sum[j] += weight * row[j].
  void (*add)(int64_t n, Sum weight, const T* row, Sum* sum);
  /// sum[j] += weight * row[j], of rows already in Sum.
  void (*add_sums)(int64_t n, Sum weight, const Sum* row, Sum* sum);
  /// row[j] *= factors[j].
  void (*scale)(int64_t n, const Sum* factors, Sum* row);
  /// <left, right>, in an order that depends on n alone.
  Sum (*dot)(int64_t n, const T* left, const T* right);
  /// hidden[j] = act(gate[j]) * (up ? up[j] : 1).
  void (*activate)(Activation activation, int64_t n, const Sum* gate, const Sum* up, T* hidden);
  /// For d = d(loss)/d(hidden) / weight: writes weight * hidden, the gradients of gate and up (null: no gate), and
  /// returns <hidden, d>, the gradient of weight.
  Sum (*activate_backward)(Activation activation, int64_t n, const T* gate, const T* up, const Sum* d, Sum weight,
                           T* weighted_hidden, T* dgate, T* dup);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class T>
RowKernels<T> row_kernels_for();

#define ANABRANCH_ROW_KERNELS(isa, qualifier)                               \
  qualifier template RowKernels<float> row_kernels_for<isa, float>();       \
  qualifier template RowKernels<double> row_kernels_for<isa, double>();     \
  qualifier template RowKernels<bfloat16> row_kernels_for<isa, bfloat16>(); \
  qualifier template RowKernels<half> row_kernels_for<isa, half>();

ANABRANCH_ROW_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_ROW_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_ROW_KERNELS(CpuIsa::avx512, extern)
#endif

template <class T>
RowKernels<T> row_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return row_kernels_for<CpuIsa::avx512, T>();
  if (cpu_isa() >= CpuIsa::avx2) return row_kernels_for<CpuIsa::avx2, T>();
#endif
  return row_kernels_for<CpuIsa::portable, T>();
}

}  // namespace anabranch
