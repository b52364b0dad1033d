// Vectors of 64 bytes; gemm_lanes_portable.hpp tells what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch::avx512 {

struct FloatLanes {
  using Packed = float;
  using Sum = float;
  using Vector = __m512;
  using SumVector = __m512;
  static constexpr int width = 16;
  static constexpr int group = 1;
  static constexpr int rows = 8;
  static constexpr int vectors = 3;
  static constexpr int packed_rows = 14;
  static constexpr int packed_vectors = 2;

  static __m512 widen(__m256i bits, const bfloat16*) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __m512 widen(__m256i bits, const half*) { return _mm512_cvtph_ps(bits); }
  static __mmask16 mask(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
  }

  static float convert(const float* value) { return *value; }
  template <class T>
  static float convert(const T* value) {
    return _mm512_cvtss_f32(widen(_mm256_castsi128_si256(_mm_cvtsi32_si128(value->bits)), value));
  }

  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
  static __m512 broadcast(const float* from) { return _mm512_set1_ps(*from); }

  static __m512 load_input(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load_input(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), from); }
  static __m512 load_input(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  template <class T>
  static __m512 load_input(const T* from) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), from);
  }
  template <class T>
  static __m512 load_input(const T* from, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(mask(count), from), from);
  }
  template <class T>
  static void load_across(const T* const (&from)[1], int64_t count, __m512& low, __m512& high) {
    low = count >= width ? load_input(from[0]) : load_input(from[0], count);
    high = count >= 2 * width ? load_input(from[0] + width) : load_input(from[0] + width, count - width);
  }

  static __m512 in_register(__m512 v) {
    asm("" : "+v"(v));
    return v;
  }
  static __m512 multiply_add(__m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 load_sum(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load_sum(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), from); }
  static void store_sum(float* to, __m512 v) { _mm512_storeu_ps(to, v); }
  static void store_sum(float* to, __m512 v, int64_t count) { _mm512_mask_storeu_ps(to, mask(count), v); }
  static float reduce(__m512 v) { return _mm512_reduce_add_ps(v); }

  static void transpose(__m512 (&v)[16]) {
    __m512 t[16], u[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    // Quarter q of u[4 * i + j] now holds rows 4i .. 4i+3 of column 4q + j; the rest moves whole quarters.
    for (int j = 0; j < 4; ++j) {
      const __m512 even01 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88),
                   odd01 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
      const __m512 even23 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
      const __m512 odd23 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
      v[j] = _mm512_shuffle_f32x4(even01, even23, 0x88);
      v[4 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      v[8 + j] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
      v[12 + j] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
  }
};

struct DoubleLanes {
  using Packed = double;
  using Sum = double;
  using Vector = __m512d;
  using SumVector = __m512d;
  static constexpr int width = 8;
  static constexpr int group = 1;
  static constexpr int rows = 8;
  static constexpr int vectors = 3;
  static constexpr int packed_rows = 14;
  static constexpr int packed_vectors = 2;

  static __mmask8 mask(int64_t count) {
    return static_cast<__mmask8>(count >= 8 ? 0xff : count > 0 ? (1u << count) - 1 : 0);
  }

  static double convert(const double* value) { return *value; }
  static __m512d zero() { return _mm512_setzero_pd(); }
  static __m512d load(const double* from) { return _mm512_loadu_pd(from); }
  static void store(double* to, __m512d v) { _mm512_storeu_pd(to, v); }
  static __m512d broadcast(const double* from) { return _mm512_set1_pd(*from); }

  static __m512d load_input(const double* from) { return _mm512_loadu_pd(from); }
  static __m512d load_input(const double* from, int64_t count) { return _mm512_maskz_loadu_pd(mask(count), from); }
  static void load_across(const double* const (&from)[1], int64_t count, __m512d& low, __m512d& high) {
    low = count >= width ? load_input(from[0]) : load_input(from[0], count);
    high = count >= 2 * width ? load_input(from[0] + width) : load_input(from[0] + width, count - width);
  }

  static __m512d in_register(__m512d v) {
    asm("" : "+v"(v));
    return v;
  }
  static __m512d multiply_add(__m512d a, __m512d b, __m512d sum) { return _mm512_fmadd_pd(a, b, sum); }
  static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
  static __m512d load_sum(const double* from) { return _mm512_loadu_pd(from); }
  static __m512d load_sum(const double* from, int64_t count) { return _mm512_maskz_loadu_pd(mask(count), from); }
  static void store_sum(double* to, __m512d v) { _mm512_storeu_pd(to, v); }
  static void store_sum(double* to, __m512d v, int64_t count) { _mm512_mask_storeu_pd(to, mask(count), v); }
  static double reduce(__m512d v) { return _mm512_reduce_add_pd(v); }

  static void transpose(__m512d (&v)[8]) {
    __m512d t[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm512_unpacklo_pd(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_pd(v[2 * i], v[2 * i + 1]);
    }
    // Quarter q of t[2 * i + j] holds rows 2i, 2i+1 of column 2q + j.
    for (int j = 0; j < 2; ++j) {
      const __m512d even01 = _mm512_shuffle_f64x2(t[j], t[2 + j], 0x88),
                    odd01 = _mm512_shuffle_f64x2(t[j], t[2 + j], 0xdd);
      const __m512d even23 = _mm512_shuffle_f64x2(t[4 + j], t[6 + j], 0x88);
      const __m512d odd23 = _mm512_shuffle_f64x2(t[4 + j], t[6 + j], 0xdd);
      v[j] = _mm512_shuffle_f64x2(even01, even23, 0x88);
      v[2 + j] = _mm512_shuffle_f64x2(odd01, odd23, 0x88);
      v[4 + j] = _mm512_shuffle_f64x2(even01, even23, 0xdd);
      v[6 + j] = _mm512_shuffle_f64x2(odd01, odd23, 0xdd);
    }
  }
};

}  // namespace anabranch::avx512
