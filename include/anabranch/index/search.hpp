// Search within a node: how many of its first `count` keys are less than, or not above, the one that is sought.
//
// A node's keys are counted by vectors and not bisected: its cache lines are then fetched side by side and not one
// after another. Cold, 96 keys took 184 ns with AVX-512 against 506 scalar; hot, 7 against 13 for a branchless
// bisection, which is what the portable code does.
#pragma once

#include <bit>
#include <cstdint>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/index/key.hpp"
#include "anabranch/index/version_lock.hpp"

namespace anabranch {

/// What the compiler's flags allow; the headers' own default. Libraries that choose at run time name theirs.
#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512BW__)
inline constexpr CpuIsa compiled_cpu_isa = CpuIsa::avx512;
#elif defined(__AVX2__)
inline constexpr CpuIsa compiled_cpu_isa = CpuIsa::avx2;
#else
inline constexpr CpuIsa compiled_cpu_isa = CpuIsa::portable;
#endif

}  // namespace anabranch

namespace anabranch::index_detail {

/// Counts keys less than `key`, and where `or_equal` those that are the same. Column w of the keys is `keys[w *
/// stride]`.
template <CpuIsa isa, int key_words, bool or_equal>
struct NodeSearch {
  [[gnu::always_inline]] static inline bool before(const int64_t* keys, int stride, int i,
                                                   const IndexKey<key_words>& key) {
    const int64_t first = read(keys + i);
    if constexpr (key_words == 1)
      return or_equal ? first <= key[0] : first < key[0];
    else {
      const int64_t second = read(keys + stride + i);
      return first < key[0] || (first == key[0] && (or_equal ? second <= key[1] : second < key[1]));
    }
  }

  [[gnu::always_inline]] static inline int bisect(const int64_t* keys, int stride, int count,
                                                  const IndexKey<key_words>& key) {
    int base = 0;
    while (count > 1) {
      const int half = count / 2;
      base += before(keys, stride, base + half - 1, key) ? half : 0;
      count -= half;
    }
    return base + (count == 1 && before(keys, stride, base, key));
  }

#if defined(__AVX512F__)
  [[gnu::always_inline]] static inline int count_avx512(const int64_t* keys, int stride, int count,
                                                        const IndexKey<key_words>& key) {
    const __m512i first = _mm512_set1_epi64(key[0]);
    int before = 0;
    for (int i = 0; i < count; i += 8) {
      const int lanes = count - i;
      const __mmask8 there = lanes >= 8 ? 0xff : static_cast<__mmask8>((1 << lanes) - 1);
      const __m512i a = _mm512_maskz_loadu_epi64(there, keys + i);
      __mmask8 mask;
      if constexpr (key_words == 1) {
        mask = or_equal ? _mm512_mask_cmple_epi64_mask(there, a, first) : _mm512_mask_cmplt_epi64_mask(there, a, first);
      } else {
        const __m512i second = _mm512_set1_epi64(key[1]);
        const __m512i b = _mm512_maskz_loadu_epi64(there, keys + stride + i);
        const __mmask8 same = _mm512_mask_cmpeq_epi64_mask(there, a, first);
        mask =
            _mm512_mask_cmplt_epi64_mask(there, a, first) |
            (or_equal ? _mm512_mask_cmple_epi64_mask(same, b, second) : _mm512_mask_cmplt_epi64_mask(same, b, second));
      }
      before += std::popcount(static_cast<unsigned>(mask));
    }
    return before;
  }
#endif

#if defined(__AVX2__)
  [[gnu::always_inline]] static inline int count_avx2(const int64_t* keys, int stride, int count,
                                                      const IndexKey<key_words>& key) {
    const __m256i first = _mm256_set1_epi64x(key[0]);
    int before = 0;
    for (int i = 0; i + 4 <= count; i += 4) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
      __m256i yes;
      if constexpr (key_words == 1) {
        yes = or_equal ? _mm256_cmpgt_epi64(a, first) : _mm256_cmpgt_epi64(first, a);
        if constexpr (or_equal) yes = _mm256_xor_si256(yes, _mm256_set1_epi64x(-1));
      } else {
        const __m256i second = _mm256_set1_epi64x(key[1]);
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + stride + i));
        const __m256i low = or_equal ? _mm256_xor_si256(_mm256_cmpgt_epi64(b, second), _mm256_set1_epi64x(-1))
                                     : _mm256_cmpgt_epi64(second, b);
        yes = _mm256_or_si256(_mm256_cmpgt_epi64(first, a), _mm256_and_si256(_mm256_cmpeq_epi64(a, first), low));
      }
      before += std::popcount(static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(yes))));
    }
    for (int i = count & ~3; i < count; ++i) before += NodeSearch::before(keys, stride, i, key);
    return before;
  }
#endif

  [[gnu::always_inline]] static inline int count(const int64_t* keys, int stride, int count,
                                                 const IndexKey<key_words>& key) {
    if constexpr (!watched) {
#if defined(__AVX512F__)
      if constexpr (isa >= CpuIsa::avx512) return count_avx512(keys, stride, count, key);
#endif
#if defined(__AVX2__)
      if constexpr (isa == CpuIsa::avx2) return count_avx2(keys, stride, count, key);
#endif
    }
    return bisect(keys, stride, count, key);
  }
};

}  // namespace anabranch::index_detail
