// Rows of float, double, bfloat16 or half, a vector of sums at a time.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "anabranch/core/lanes_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct RowLanes {
  using Sum = accumulate_t<T>;
  using V = Lanes<isa, Sum>;
  using Vector = typename V::Vector;
  static constexpr int width = V::width;
  // GCC applies the attribute in a template only to types that depend on its parameters.
  using Bits [[gnu::vector_size(2 * width)]] = std::conditional_t<(sizeof(T) > 0), uint16_t, T>;
  using Words [[gnu::vector_size(4 * width)]] = std::conditional_t<(sizeof(T) > 0), uint32_t, T>;

  [[gnu::always_inline]] static Vector load(const T* from) {
    Vector out;
    if constexpr (std::is_same_v<T, Sum>) {
      __builtin_memcpy(&out, from, sizeof(out));
    } else if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__AVX512F__)  // GCC would widen the halves one after the other
      if constexpr (width == 16) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return reinterpret_cast<Vector>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      }
#endif
      Bits bits;
      __builtin_memcpy(&bits, from, sizeof(bits));
      const Words words = __builtin_convertvector(bits, Words) << 16;
      __builtin_memcpy(&out, &words, sizeof(out));
    } else {
#if defined(__AVX512F__)
      if constexpr (width == 16) return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#endif
#if defined(__F16C__)
      if constexpr (width == 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
      for (int l = 0; l < width; ++l) out[l] = static_cast<Sum>(from[l]);
    }
    return out;
  }

  /// The first `count` elements, then zeros.
  [[gnu::always_inline]] static Vector load(const T* from, int64_t count) {
    if (count >= width) return load(from);
    T part[width] = {};
    for (int64_t l = 0; l < count; ++l) part[l] = from[l];
    return load(part);
  }

  [[gnu::always_inline]] static void store(T* to, Vector v) {
    if constexpr (std::is_same_v<T, Sum>) {
      __builtin_memcpy(to, &v, sizeof(v));
    } else if constexpr (std::is_same_v<T, bfloat16>) {
      const Bits bits = rounded(v);
      __builtin_memcpy(to, &bits, sizeof(bits));
    } else {
#if defined(__AVX512F__)
      if constexpr (width == 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        return;
      }
#endif
#if defined(__F16C__)
      if constexpr (width == 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
        return;
      }
#endif
      for (int l = 0; l < width; ++l) to[l] = T(v[l]);
    }
  }

  [[gnu::always_inline]] static void store(T* to, Vector v, int64_t count) {
    if (count >= width) return store(to, v);
    T part[width];
    store(part, v);
    for (int64_t l = 0; l < count; ++l) to[l] = part[l];
  }

  /// Stores past the caches; `to` is aligned to the bytes written. Only AVX-512 has it here.
  [[gnu::always_inline]] static void store_streaming(T* to, Vector v) {
#if defined(__AVX512F__)
    if constexpr (width * sizeof(T) == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(v));
      return;
    } else if constexpr (width * sizeof(T) == 32) {
      alignas(32) T part[width];
      store(part, v);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_load_si256(reinterpret_cast<const __m256i*>(part)));
      return;
    }
#endif
    store(to, v);
  }

  /// After the last of them, before anybody is told that the rows are there.
  [[gnu::always_inline]] static void end_streaming() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
  }

  /// Sum of the lanes, in order of halves.
  [[gnu::always_inline]] static Sum reduce(Vector v) {
    Sum part[width];
    __builtin_memcpy(part, &v, sizeof(v));
    for (int half = width / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) part[l] += part[l + half];
    }
    return part[0];
  }

 private:
  [[gnu::always_inline]] static Bits rounded(Vector v) {
#if defined(__AVX512BF16__)
    if constexpr (isa == CpuIsa::avx512_bf16) return reinterpret_cast<Bits>(_mm512_cvtneps_pbh(v));
#endif
    Words words;
    __builtin_memcpy(&words, &v, sizeof(words));
    const Words nearest = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16, quiet = (words >> 16) | 0x40u;
    const Words chosen = (words & 0x7fffffffu) > 0x7f800000u ? quiet : nearest;
    return __builtin_convertvector(chosen, Bits);
  }
};

}  // namespace anabranch::detail
