// The exponential of the CPU kernels: a call to libm would stop the vectoriser, and bits would depend on the system.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "anabranch/core/scalar.hpp"

namespace anabranch::detail {

/// Where float and double have an e^x that is neither 0 nor infinite.
template <class S>
inline constexpr S exp_lowest = sizeof(S) == 4 ? S(-87) : S(-708);
template <class S>
inline constexpr S exp_highest = sizeof(S) == 4 ? S(88) : S(709);

/// e^x within 2 units in the last place for x in [exp_lowest, exp_highest]; NaN stays NaN. V is S or a vector of S of
/// the compiler, Integer its counterpart. Cody-Waite reduction to |r| <= ln(2) / 2 and Taylor's polynomial, of degree 7
/// for float (the remainder is below 2^-27) and 13 for double.
template <class S, class Integer, class V>
[[gnu::always_inline]] inline V exp_in_range(V x) {
  constexpr bool is_float = sizeof(S) == 4;
  constexpr S shifter = is_float ? S(12582912) : S(6755399441055744);  // 1.5 * 2^23, 2^52: adding it rounds
  constexpr S ln2_high = is_float ? S(0.693359375) : S(6.93147180369123816490e-01);
  constexpr S ln2_low = is_float ? S(-2.12194440e-4) : S(1.90821492927058770002e-10);
  const V n = (x * S(1.44269504088896341) + shifter) - shifter;
  const V r = (x - n * ln2_high) - n * ln2_low;
  constexpr int degree = is_float ? 7 : 13;
  constexpr auto inverse_factorial = [](int k) {
    double f = 1;
    for (int i = 2; i <= k; ++i) f *= i;
    return static_cast<S>(1 / f);
  };
  V polynomial = inverse_factorial(degree) - V{};
  [&]<int... k>(std::integer_sequence<int, k...>) __attribute__((always_inline)) {
    ((polynomial = polynomial * r + inverse_factorial(degree - 1 - k)), ...);
  }(std::make_integer_sequence<int, degree>{});
  constexpr int mantissa = is_float ? 23 : 52, bias = is_float ? 127 : 1023;
  if constexpr (std::is_same_v<V, S>) {
    return polynomial * bits_to<S>((static_cast<Integer>(n) + bias) << mantissa);
  } else {
    const Integer exponent = (__builtin_convertvector(n, Integer) + bias) << mantissa;
    V power;
    std::memcpy(&power, &exponent, sizeof(power));
    return polynomial * power;
  }
}

/// e^x for float, clamped outside the range.
[[gnu::always_inline]] inline float vector_exp(float x) {
  x = x < exp_lowest<float> ? exp_lowest<float> : x;
  x = x > exp_highest<float> ? exp_highest<float> : x;
  return exp_in_range<float, int32_t>(x);
}

}  // namespace anabranch::detail
