// Vectors of 64 bytes that hold pairs of bfloat16, two consecutive k each, for vdpbf16ps;
// gemm_lanes_portable.hpp tells what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch::avx512_bf16 {

struct Bfloat16PairLanes {
  using Packed = uint32_t;
  using Sum = float;
  using Vector = __m512i;
  using SumVector = __m512;
  static constexpr int width = 16;
  static constexpr int group = 2;
  static constexpr int rows = 8;
  static constexpr int vectors = 3;
  static constexpr int packed_rows = 14;
  static constexpr int packed_vectors = 2;

  static __mmask16 mask(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

  static uint32_t convert(const bfloat16* pair) { return pair[0].bits | static_cast<uint32_t>(pair[1].bits) << 16; }

  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512i load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static void store(uint32_t* to, __m512i v) { _mm512_storeu_si512(to, v); }
  /// The pair may lie in a row of bfloat16, at any address.
  static __m512i broadcast(const uint32_t* from) {
    int pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }

  static __m512i load_input(const bfloat16* from) { return _mm512_loadu_si512(from); }
  static __m512i load_input(const bfloat16* from, int64_t count) {
    return _mm512_maskz_loadu_epi16(count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0, from);
  }
  /// 32 columns of two rows (the second null past the end of k): one permutation makes a vector of their pairs.
  static void load_across(const bfloat16* const (&from)[2], int64_t count, __m512i& low, __m512i& high) {
    alignas(64) static constexpr uint16_t order[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
                                                       16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                                       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __m512i even = count >= 32 ? load_input(from[0]) : load_input(from[0], count);
    __m512i odd = _mm512_setzero_si512();
    if (from[1]) odd = count >= 32 ? load_input(from[1]) : load_input(from[1], count);
    low = _mm512_permutex2var_epi16(even, _mm512_load_si512(order), odd);
    high = _mm512_permutex2var_epi16(even, _mm512_load_si512(order + 32), odd);
  }

  static __m512i in_register(__m512i v) {
    asm("" : "+v"(v));
    return v;
  }
  static __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 load_sum(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load_sum(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), from); }
  static void store_sum(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
  static void store_sum(float* to, __m512 v, int64_t count) { _mm512_mask_storeu_ps(to, mask(count), v); }
  /// The first `count` of 32 sums, rounded: a cache line at once.
  static void store_rounded(bfloat16* to, __m512 low, __m512 high, int64_t count) {
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    if (count >= 32) {
      _mm512_storeu_si512(to, both);
    } else {
      _mm512_mask_storeu_epi16(to, (1u << count) - 1, both);
    }
  }
  static float reduce(__m512 v) { return _mm512_reduce_add_ps(v); }

  static void transpose(__m512i (&v)[16]) {
    __m512i t[16], u[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // Quarter q of u[4 * i + j] now holds rows 4i .. 4i+3 of column 4q + j; the rest moves whole quarters.
    for (int j = 0; j < 4; ++j) {
      const __m512i even01 = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88),
                    odd01 = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xdd);
      const __m512i even23 = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88);
      const __m512i odd23 = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xdd);
      v[j] = _mm512_shuffle_i32x4(even01, even23, 0x88);
      v[4 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
      v[8 + j] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
      v[12 + j] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
  }
};

}  // namespace anabranch::avx512_bf16
