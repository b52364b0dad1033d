// The fast CPU form of gemm_reference: one call is one tile, run by one thread.
//
// csrc/core/gemm_dispatch.cpp picks the instruction set (cpu_features.hpp); gemm_driver.hpp tells how a tile is cut.
#pragma once

#include <cstddef>
#include <cstdint>

#include "anabranch/core/gemm.hpp"

namespace anabranch {

namespace detail {

// In units of one vector's bytes: a packed panel is up to `gemm_block_k` vectors, one per k.
inline constexpr std::size_t gemm_vector_bytes = 64;
inline constexpr int64_t gemm_block_k = 256;
inline constexpr int64_t gemm_panels_a = 32;
inline constexpr int64_t gemm_panels_b = 48;

}  // namespace detail

/// Scratch one worker needs for gemm(), in bytes; 64-byte aligned.
inline constexpr std::size_t gemm_workspace_bytes =
    (detail::gemm_panels_a + detail::gemm_panels_b) * (detail::gemm_block_k + 1) * detail::gemm_vector_bytes;

/// Same result as gemm_reference up to rounding; single-threaded; `workspace` is private to the caller's thread during
/// the call. Never throws. Every element of c depends only on its operands, m, n, k, the strides, which ids are given,
/// and the instruction set in use: not on alignment, on the thread, or on what ran before.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, accumulate_t<T>* c,
          int64_t c_stride, bool accumulate, void* workspace);

/// Largest k of gemm_stored.
inline constexpr int64_t gemm_max_stored_k = 256;

/// out[i * out_stride + j] = T(sum_p a(i, p) * b(j, p)), for 0 < k <= gemm_max_stored_k: for results so large that they
/// are written once and not read again. Single-threaded; never throws.
template <class T>
void gemm_stored(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* out,
                 int64_t out_stride, void* workspace);

#define ANABRANCH_GEMM_STORED(T, qualifier)                                                                           \
  qualifier template void gemm_stored<T>(int64_t, int64_t, int64_t, const GemmOperand<T>&, const GemmOperand<T>&, T*, \
                                         int64_t, void*);
ANABRANCH_GEMM_STORED(float, extern)
ANABRANCH_GEMM_STORED(double, extern)
ANABRANCH_GEMM_STORED(bfloat16, extern)
ANABRANCH_GEMM_STORED(half, extern)

extern template void gemm<float>(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&,
                                 float*, int64_t, bool, void*);
extern template void gemm<double>(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&,
                                  double*, int64_t, bool, void*);
extern template void gemm<bfloat16>(int64_t, int64_t, int64_t, const GemmOperand<bfloat16>&,
                                    const GemmOperand<bfloat16>&, float*, int64_t, bool, void*);
extern template void gemm<half>(int64_t, int64_t, int64_t, const GemmOperand<half>&, const GemmOperand<half>&, float*,
                                int64_t, bool, void*);

namespace detail {

template <class T>
struct GemmArguments {
  int64_t m, n, k;
  GemmOperand<T> a, b;
  accumulate_t<T>* c;
  int64_t c_stride;
  bool accumulate;
  void* workspace;
  T* out = nullptr;  // where gemm_stored writes; then c is not used
  int64_t out_stride = 0;
};

}  // namespace detail

// One per instruction set, each in a translation unit of its own that only a machine with it may enter.
void gemm_portable(const detail::GemmArguments<float>&);
void gemm_portable(const detail::GemmArguments<double>&);
void gemm_portable(const detail::GemmArguments<bfloat16>&);
void gemm_portable(const detail::GemmArguments<half>&);
void gemm_avx2(const detail::GemmArguments<float>&);
void gemm_avx2(const detail::GemmArguments<double>&);
void gemm_avx2(const detail::GemmArguments<bfloat16>&);
void gemm_avx2(const detail::GemmArguments<half>&);
void gemm_avx512(const detail::GemmArguments<float>&);
void gemm_avx512(const detail::GemmArguments<double>&);
void gemm_avx512(const detail::GemmArguments<bfloat16>&);
void gemm_avx512(const detail::GemmArguments<half>&);
void gemm_avx512_bf16(const detail::GemmArguments<bfloat16>&);

}  // namespace anabranch
