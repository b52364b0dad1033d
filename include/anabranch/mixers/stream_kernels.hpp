// The work on rows of residual streams in the CPU's widest vectors; csrc/mixers/stream_kernels_*.cpp.
//
// Every function takes some tokens whose streams lie one after another, and a shape that counts them. Arithmetic is in
// accumulate_t<T>; sums run in an order that depends on the shape alone.
#pragma once

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/mixers/streams.hpp"

namespace anabranch {

/// The logits of a token that pre_backward reads at a time: products' gradients and weights are padded to it by zeros.
inline constexpr int64_t kLogitBlock = 8;
/// The channels of every stream that pre_backward works on at a time; weights are packed in such pieces.
inline constexpr int64_t kChannelBlock = 64;
/// The tokens that pre_backward takes at most in one call.
inline constexpr int64_t kTokenBlock = 16;
/// Its scratch holds two blocks of every stream.
inline constexpr int64_t kStreamScratch = kTokenBlock * kChannelBlock;

constexpr int64_t padded_logits(int64_t logits) { return (logits + kLogitBlock - 1) / kLogitBlock * kLogitBlock; }

/// The streams' gradient on channels begin .. begin + count of all streams, at most kChannelBlock of them.
template <class T>
struct PreBackwardBlock {
  using Sum = accumulate_t<T>;
  StreamShape shape;  // tokens: at most kTokenBlock
  int64_t begin, count;
  int64_t ahead_tokens, ahead_channels;  // from here to the block after this one, whose rows are prefetched
  const T *x, *du, *dnext, *dx_given;    // of the tokens; the last three may be null
  const Sum *reads, *coefficients;       // [tokens, n (n + 2)]: whose p was used, and whose H
  int64_t logits;                        // padded; 0: no weight
  bool per_segment;                      // logits are those of stream j alone, and there are n times as many
  const Sum* dproducts;                  // [tokens, segments, logits], times r
  const Sum *slopes, *means;             // [tokens, segments]: dx takes slope (x - mean) away
  const Sum* weight;                     // [segments, streams of one, logits, kChannelBlock] of these channels
  Sum* dweight;                          // the same, added to; null: not wanted
  T* dx;                                 // null: not wanted
  bool streaming;                        // dx goes past the caches
  Sum* scratch;                          // [2, streams, kStreamScratch]
};

template <class T>
struct StreamKernels {
  using Sum = accumulate_t<T>;

  /// to[i] = from[i].
  void (*widen)(int64_t count, const T* from, Sum* to);
  /// 1 / sqrt(mean square + eps) and the mean (0 unless centered) of rows [rows, width], two numbers every `stride`.
  void (*moments)(int64_t rows, int64_t width, const T* x, double eps, bool centered, Sum* to, int64_t stride);
  /// u, with p the first n of every token's coefficients.
  void (*pre)(const StreamShape& shape, const T* x, const Sum* coefficients, T* u);
  /// x' into `out`, and into `cached` where that is given. `streaming`: `out` goes past the caches.
  void (*post)(const StreamShape& shape, const T* x, const T* y, const Sum* coefficients, T* out, bool streaming,
               T* cached);
  /// stream_post_backward_reference.
  void (*post_backward)(const StreamShape& shape, const T* dout, const T* x, const T* y, const Sum* coefficients,
                        const StreamPostGradients<T>& gradients);
  /// dp[j] = <du, x_j> at the first n of every token's n (n + 2) numbers.
  void (*read_dots)(const StreamShape& shape, const T* du, const T* x, Sum* dp);
  void (*pre_backward)(const PreBackwardBlock<T>& block);
};

/// The kernels compiled for `isa`; one specialisation per translation unit.
template <CpuIsa isa, class T>
StreamKernels<T> stream_kernels_for();

#define ANABRANCH_STREAM_KERNELS(isa, qualifier)                                  \
  qualifier template StreamKernels<float> stream_kernels_for<isa, float>();       \
  qualifier template StreamKernels<bfloat16> stream_kernels_for<isa, bfloat16>(); \
  qualifier template StreamKernels<half> stream_kernels_for<isa, half>();

// float64 is for checking gradients: portable vectors will do.
extern template StreamKernels<double> stream_kernels_for<CpuIsa::portable, double>();
ANABRANCH_STREAM_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_STREAM_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_STREAM_KERNELS(CpuIsa::avx512, extern)
extern template StreamKernels<bfloat16> stream_kernels_for<CpuIsa::avx512_bf16, bfloat16>();
#endif

template <class T>
StreamKernels<T> stream_kernels() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (cpu_isa() == CpuIsa::avx512_bf16) return stream_kernels_for<CpuIsa::avx512_bf16, T>();
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (cpu_isa() >= CpuIsa::avx512) return stream_kernels_for<CpuIsa::avx512, T>();
    if (cpu_isa() >= CpuIsa::avx2) return stream_kernels_for<CpuIsa::avx2, T>();
  }
#endif
  return stream_kernels_for<CpuIsa::portable, T>();
}

}  // namespace anabranch
