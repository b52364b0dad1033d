// The element types of every kernel: float, double, bfloat16 and half, with the same bits as torch's.
//
// bfloat16 and half only store; all arithmetic happens in accumulate_t<T>. Conversions round to nearest, ties to even,
// and keep NaN, so host and device results agree bit for bit.
#pragma once

#include <cstdint>
#include <type_traits>

// On the host these are always inlined: an out-of-line copy compiled with AVX-512 could be the one the linker keeps for
// a program that must also run on an older machine.
#if defined(__CUDACC__)
#define ANABRANCH_HOST_DEVICE __host__ __device__
#else
#define ANABRANCH_HOST_DEVICE [[gnu::always_inline]]
#endif

namespace anabranch {

namespace detail {

template <class To, class From>
ANABRANCH_HOST_DEVICE inline To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

ANABRANCH_HOST_DEVICE inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = bits_to<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

ANABRANCH_HOST_DEVICE inline uint16_t half_bits(float value) {
  const uint32_t bits = bits_to<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x33000001u) return sign;             // rounds to zero
  if (magnitude < 0x38800000u) {                        // subnormal half: shift the significand into place
    const uint32_t exponent = magnitude >> 23;
    const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126u - exponent;
    const uint32_t kept = significand >> shift;
    const uint32_t rest = significand & ((1u << shift) - 1u);
    const uint32_t midpoint = 1u << (shift - 1u);
    return static_cast<uint16_t>(sign | (kept + ((rest > midpoint || (rest == midpoint && (kept & 1u))) ? 1u : 0u)));
  }
  const uint32_t rebased = magnitude - 0x38000000u;
  return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
}

ANABRANCH_HOST_DEVICE inline float half_value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x400u) return bits_to<float>(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -subnormal : subnormal;
}

}  // namespace detail

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  ANABRANCH_HOST_DEVICE explicit bfloat16(float value) : bits(detail::bfloat16_bits(value)) {}
  ANABRANCH_HOST_DEVICE explicit operator float() const {
    return detail::bits_to<float>(static_cast<uint32_t>(bits) << 16);
  }
};

struct half {
  uint16_t bits;
  half() = default;
  ANABRANCH_HOST_DEVICE explicit half(float value) : bits(detail::half_bits(value)) {}
  ANABRANCH_HOST_DEVICE explicit operator float() const { return detail::half_value(bits); }
};

/// The type in which sums over T are kept: double for double, float for all else.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace anabranch
