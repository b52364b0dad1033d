// Vectors of 32 bytes with FMA and F16C; gemm_lanes_portable.hpp tells what each member means.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch::avx2 {

struct FloatLanes {
  using Packed = float;
  using Sum = float;
  using Vector = __m256;
  using SumVector = __m256;
  static constexpr int width = 8;
  static constexpr int group = 1;
  static constexpr int rows = 4;
  static constexpr int vectors = 3;
  static constexpr int packed_rows = 6;
  static constexpr int packed_vectors = 2;

  static __m256 widen(__m128i bits, const bfloat16*) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m256 widen(__m128i bits, const half*) { return _mm256_cvtph_ps(bits); }
  static __m256i mask(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static float convert(const float* value) { return *value; }
  template <class T>
  static float convert(const T* value) {
    return _mm256_cvtss_f32(widen(_mm_cvtsi32_si128(value->bits), value));
  }

  static __m256 zero() { return _mm256_setzero_ps(); }
  static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, __m256 v) { _mm256_storeu_ps(to, v); }
  static __m256 broadcast(const float* from) { return _mm256_broadcast_ss(from); }

  static __m256 load_input(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 load_input(const float* from, int64_t count) { return _mm256_maskload_ps(from, mask(count)); }
  static __m256 load_input(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  template <class T>
  static __m256 load_input(const T* from) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), from);
  }
  template <class T>
  static __m256 load_input(const T* from, int64_t count) {
    alignas(16) uint16_t bits[8] = {};
    for (int i = 0; i < 8; ++i)
      if (i < count) bits[i] = from[i].bits;
    return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(bits)), from);
  }
  template <class T>
  static void load_across(const T* const (&from)[1], int64_t count, __m256& low, __m256& high) {
    low = count >= width ? load_input(from[0]) : load_input(from[0], count);
    high = count >= 2 * width ? load_input(from[0] + width) : load_input(from[0] + width, count - width);
  }

  static __m256 in_register(__m256 v) {
    asm("" : "+x"(v));
    return v;
  }
  static __m256 multiply_add(__m256 a, __m256 b, __m256 sum) { return _mm256_fmadd_ps(a, b, sum); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 load_sum(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 load_sum(const float* from, int64_t count) { return _mm256_maskload_ps(from, mask(count)); }
  static void store_sum(float* to, __m256 v) { _mm256_storeu_ps(to, v); }
  static void store_sum(float* to, __m256 v, int64_t count) { _mm256_maskstore_ps(to, mask(count), v); }
  static float reduce(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static void transpose(__m256 (&v)[8]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }
};

struct DoubleLanes {
  using Packed = double;
  using Sum = double;
  using Vector = __m256d;
  using SumVector = __m256d;
  static constexpr int width = 4;
  static constexpr int group = 1;
  static constexpr int rows = 4;
  static constexpr int vectors = 3;
  static constexpr int packed_rows = 6;
  static constexpr int packed_vectors = 2;

  static __m256i mask(int64_t count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
  }

  static double convert(const double* value) { return *value; }
  static __m256d zero() { return _mm256_setzero_pd(); }
  static __m256d load(const double* from) { return _mm256_loadu_pd(from); }
  static void store(double* to, __m256d v) { _mm256_storeu_pd(to, v); }
  static __m256d broadcast(const double* from) { return _mm256_broadcast_sd(from); }

  static __m256d load_input(const double* from) { return _mm256_loadu_pd(from); }
  static __m256d load_input(const double* from, int64_t count) { return _mm256_maskload_pd(from, mask(count)); }
  static void load_across(const double* const (&from)[1], int64_t count, __m256d& low, __m256d& high) {
    low = count >= width ? load_input(from[0]) : load_input(from[0], count);
    high = count >= 2 * width ? load_input(from[0] + width) : load_input(from[0] + width, count - width);
  }

  static __m256d in_register(__m256d v) {
    asm("" : "+x"(v));
    return v;
  }
  static __m256d multiply_add(__m256d a, __m256d b, __m256d sum) { return _mm256_fmadd_pd(a, b, sum); }
  static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  static __m256d load_sum(const double* from) { return _mm256_loadu_pd(from); }
  static __m256d load_sum(const double* from, int64_t count) { return _mm256_maskload_pd(from, mask(count)); }
  static void store_sum(double* to, __m256d v) { _mm256_storeu_pd(to, v); }
  static void store_sum(double* to, __m256d v, int64_t count) { _mm256_maskstore_pd(to, mask(count), v); }
  static double reduce(__m256d v) {
    const __m128d sum = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum)));
  }

  static void transpose(__m256d (&v)[4]) {
    const __m256d t0 = _mm256_unpacklo_pd(v[0], v[1]), t1 = _mm256_unpackhi_pd(v[0], v[1]);
    const __m256d t2 = _mm256_unpacklo_pd(v[2], v[3]), t3 = _mm256_unpackhi_pd(v[2], v[3]);
    v[0] = _mm256_permute2f128_pd(t0, t2, 0x20);
    v[1] = _mm256_permute2f128_pd(t1, t3, 0x20);
    v[2] = _mm256_permute2f128_pd(t0, t2, 0x31);
    v[3] = _mm256_permute2f128_pd(t1, t3, 0x31);
  }
};

}  // namespace anabranch::avx2
