// The matrix product whose B was rearranged beforehand: weights that are multiplied many times, stored in the order in
// which the kernel reads them.
//
// It gives what gemm_reference gives on the operand that was packed. B may also be stored as int8: then the products
// are with its integers, and scaling column j is the caller's.
//
// Layout of a packed matrix [n, k], for one instruction set's vectors of `width` columns and steps of `group` k
// (gemm_lanes_portable.hpp): blocks of 256 steps; within them groups of up to `vectors` vectors of columns; within them
// [steps][vectors][width][group]. The kernel walks all of it front to back, so the processor's own prefetchers follow
// and the floor of few rows is bytes / bandwidth. Columns and k that fill up the last vector and step are zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/gemm.hpp"
#include "anabranch/core/gemm_cpu.hpp"

namespace anabranch {

/// Bytes of a packed [n, k] matrix of `element_size` bytes an element: the same for every instruction set.
constexpr int64_t packed_bytes(int64_t n, int64_t k, int64_t element_size) {
  return (n + 15) / 16 * 16 * ((k + 1) / 2 * 2) * element_size;
}

template <class T, class Stored>
struct PackedGemm {
  int64_t m, n, k;
  GemmOperand<T> a;
  const Stored* b;     // packed as [n, packed_k]
  int64_t packed_k;    // at least k
  accumulate_t<T>* c;  // [m, n], not read
  int64_t c_stride;
  void* workspace;               // gemm_workspace_bytes, private to the thread during the call
  const Stored* next = nullptr;  // what will be read after b: its beginning is prefetched in time
  int64_t period = 0;            // if not 0, columns j with j % period >= wanted may be left out
  int64_t wanted = 0;

  /// Whether any of the columns begin .. end is needed.
  [[gnu::always_inline]] bool wants(int64_t begin, int64_t end) const {
    return period == 0 || begin % period < wanted || begin / period != (end - 1) / period;
  }
};

/// Both are single-threaded and never throw. `multiply` sums in the same order for any m, so that a row's result does
/// not depend on its company.
template <class T, class Stored>
struct PackedGemmKernels {
  /// Writes at most packed_bytes(n, k, sizeof(Stored)) bytes and returns their end.
  Stored* (*pack)(int64_t n, int64_t k, const GemmOperand<Stored>& b, Stored* to);
  void (*multiply)(const PackedGemm<T, Stored>& product);
};

/// The kernels compiled for `isa`, one specialisation per translation unit.
template <CpuIsa isa, class T, class Stored>
PackedGemmKernels<T, Stored> packed_gemm_kernels_for();

#define ANABRANCH_PACKED_GEMM(isa, T, Stored) \
  template <>                                 \
  PackedGemmKernels<T, Stored> packed_gemm_kernels_for<isa, T, Stored>();
#define ANABRANCH_PACKED_GEMMS(isa)              \
  ANABRANCH_PACKED_GEMM(isa, float, float)       \
  ANABRANCH_PACKED_GEMM(isa, double, double)     \
  ANABRANCH_PACKED_GEMM(isa, bfloat16, bfloat16) \
  ANABRANCH_PACKED_GEMM(isa, half, half)         \
  ANABRANCH_PACKED_GEMM(isa, float, int8_t)      \
  ANABRANCH_PACKED_GEMM(isa, bfloat16, int8_t)   \
  ANABRANCH_PACKED_GEMM(isa, half, int8_t)

ANABRANCH_PACKED_GEMMS(CpuIsa::portable)
#if defined(__x86_64__)
ANABRANCH_PACKED_GEMMS(CpuIsa::avx2)
ANABRANCH_PACKED_GEMMS(CpuIsa::avx512)
ANABRANCH_PACKED_GEMM(CpuIsa::avx512_bf16, bfloat16, bfloat16)
#endif

/// A matrix packed by the kernels of one instruction set is for those of the same alone.
template <class T, class Stored>
PackedGemmKernels<T, Stored> packed_gemm_kernels(CpuIsa isa) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<Stored, bfloat16>) {
    if (isa == CpuIsa::avx512_bf16) return packed_gemm_kernels_for<CpuIsa::avx512_bf16, bfloat16, bfloat16>();
  }
  if (isa >= CpuIsa::avx512) return packed_gemm_kernels_for<CpuIsa::avx512, T, Stored>();
  if (isa == CpuIsa::avx2) return packed_gemm_kernels_for<CpuIsa::avx2, T, Stored>();
#endif
  return packed_gemm_kernels_for<CpuIsa::portable, T, Stored>();
}

}  // namespace anabranch
