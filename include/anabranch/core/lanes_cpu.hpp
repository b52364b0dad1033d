// A vector register of floats or doubles as one number (number.hpp): the matrices of as many tokens side by side.
//
// Written in the compiler's vector types, so one source serves every instruction set; the type names it, so that no
// instantiation for AVX-512 can be the one the linker keeps for an older machine. Reads and writes transpose: memory
// has one matrix after another, lane l of every number belongs to matrix l.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/number.hpp"
#include "anabranch/core/vector_exp.hpp"

namespace anabranch::detail {

constexpr int vector_bytes(CpuIsa isa) { return isa >= CpuIsa::avx512 ? 64 : isa == CpuIsa::avx2 ? 32 : 16; }

template <CpuIsa isa, class S>
struct Lanes {
  static constexpr int bytes = vector_bytes(isa);
  using Vector [[gnu::vector_size(bytes)]] = S;
  using Integer = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
  using Mask [[gnu::vector_size(bytes)]] = Integer;
  static constexpr int width = bytes / sizeof(S);

  Vector v;

  Lanes() = default;
  [[gnu::always_inline]] Lanes(Vector given) : v(given) {}
  [[gnu::always_inline]] Lanes(double value) : v(static_cast<S>(value) - Vector{}) {}
  [[gnu::always_inline]] Lanes(float value) : v(static_cast<S>(value) - Vector{}) {}
  [[gnu::always_inline]] Lanes(int value) : v(static_cast<S>(value) - Vector{}) {}
  [[gnu::always_inline]] Lanes(bool value) : v(static_cast<S>(value) - Vector{}) {}

  [[gnu::always_inline]] friend Lanes operator+(Lanes a, Lanes b) { return a.v + b.v; }
  [[gnu::always_inline]] friend Lanes operator-(Lanes a, Lanes b) { return a.v - b.v; }
  [[gnu::always_inline]] friend Lanes operator*(Lanes a, Lanes b) { return a.v * b.v; }
  [[gnu::always_inline]] friend Lanes operator/(Lanes a, Lanes b) { return a.v / b.v; }

  struct Test {
    Mask mask;
    [[gnu::always_inline]] friend Test operator|(Test a, Test b) { return {a.mask | b.mask}; }
  };
  [[gnu::always_inline]] friend Test operator<(Lanes a, Lanes b) { return {a.v < b.v}; }
  [[gnu::always_inline]] friend Test operator>(Lanes a, Lanes b) { return {a.v > b.v}; }
  [[gnu::always_inline]] friend Test operator<=(Lanes a, Lanes b) { return {a.v <= b.v}; }

  [[gnu::always_inline]] friend Lanes select(Test test, Lanes yes, Lanes no) { return test.mask ? yes.v : no.v; }
  [[gnu::always_inline]] friend bool any(Test test) {
    Integer found = 0;
    for (int l = 0; l < width; ++l) found |= test.mask[l];
    return found != 0;
  }
  [[gnu::always_inline]] friend Lanes sqrt_of(Lanes a) {
    for (int l = 0; l < width; ++l) a.v[l] = std::sqrt(a.v[l]);
    return a;
  }
  [[gnu::always_inline]] friend Lanes log_of(Lanes a) {  // on rare paths alone
    for (int l = 0; l < width; ++l) a.v[l] = std::log(a.v[l]);
    return a;
  }

  /// e^a as exp_in_range has it, 0 far below; above the range its largest value.
  [[gnu::always_inline]] friend Lanes exp_of(Lanes a) {
    const Vector low = exp_lowest<S> - Vector{}, high = exp_highest<S> - Vector{}, zero{};
    Vector x = a.v < low ? low : a.v;
    x = x > high ? high : x;
    const Vector result = exp_in_range<S, Mask>(x);
    return a.v < low ? zero : result;
  }
};

template <CpuIsa isa>
struct WideNumber<Lanes<isa, float>> {
  using type = Lanes<isa, double>;
  static constexpr int parts = 2;
  static type get(const Lanes<isa, float>& value, int part) {
    type out;
    for (int l = 0; l < type::width; ++l) out.v[l] = value.v[type::width * part + l];
    return out;
  }
  static void set(Lanes<isa, float>& value, int part, const type& from) {
    for (int l = 0; l < type::width; ++l) value.v[type::width * part + l] = static_cast<float>(from.v[l]);
  }
};
template <CpuIsa isa>
struct WideNumber<Lanes<isa, double>> {
  using type = Lanes<isa, double>;
  static constexpr int parts = 1;
  static type get(const type& value, int) { return value; }
  static void set(type& value, int, const type& from) { value = from; }
};

/// Two numbers as one: where an operation must wait for the one before, the other's runs meanwhile.
template <class V>
struct Pair {
  V first, second;

  Pair() = default;
  [[gnu::always_inline]] Pair(V a, V b) : first(a), second(b) {}
  template <class S>
  [[gnu::always_inline]] explicit Pair(S value) : first(value), second(value) {}

  struct Test {
    decltype(V() < V()) first, second;
    [[gnu::always_inline]] friend Test operator|(Test a, Test b) { return {a.first | b.first, a.second | b.second}; }
  };
  [[gnu::always_inline]] friend Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
  [[gnu::always_inline]] friend Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
  [[gnu::always_inline]] friend Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
  [[gnu::always_inline]] friend Pair operator/(Pair a, Pair b) { return {a.first / b.first, a.second / b.second}; }
  [[gnu::always_inline]] friend Test operator<(Pair a, Pair b) { return {a.first < b.first, a.second < b.second}; }
  [[gnu::always_inline]] friend Test operator>(Pair a, Pair b) { return {a.first > b.first, a.second > b.second}; }
  [[gnu::always_inline]] friend Pair select(Test test, Pair yes, Pair no) {
    return {select(test.first, yes.first, no.first), select(test.second, yes.second, no.second)};
  }
  [[gnu::always_inline]] friend bool any(Test test) { return any(test.first) || any(test.second); }
  [[gnu::always_inline]] friend Pair exp_of(Pair a) { return {exp_of(a.first), exp_of(a.second)}; }
  [[gnu::always_inline]] friend Pair log_of(Pair a) { return {log_of(a.first), log_of(a.second)}; }
};

/// One stage of a transposition: what lies `distance` apart between two vectors changes places.
template <int distance, class V, int... e>
[[gnu::always_inline]] inline void exchange(V& a, V& b, std::integer_sequence<int, e...>) {
  constexpr int width = sizeof...(e);
  const auto low = __builtin_shufflevector(a.v, b.v, (e & distance ? width + e - distance : e)...);
  const auto high = __builtin_shufflevector(a.v, b.v, (e & distance ? width + e : e + distance)...);
  a.v = low, b.v = high;
}

template <int distance, class V>
[[gnu::always_inline]] inline void transpose_lanes(V (&rows)[V::width]) {
  if constexpr (distance < V::width) {
    ANABRANCH_UNROLL
    for (int i = 0; i < V::width; ++i) {
      if (!(i & distance)) {
        exchange<distance>(rows[i], rows[i + distance], std::make_integer_sequence<int, V::width>{});
      }
    }
    transpose_lanes<2 * distance>(rows);
  }
}

/// to[k] lane l = from[l * stride + k] for l < count; other lanes repeat the last row. 0 < count <= width.
template <class V, class S>
void load_transposed(const S* from, int64_t stride, int64_t columns, int64_t count, V* to) {
  constexpr int width = V::width;
  if (columns >= width && count == width) {
    for (int64_t k = 0; k < columns; k += width) {
      const int64_t first = k + width <= columns ? k : columns - width;
      V rows[width];
      for (int l = 0; l < width; ++l) std::memcpy(&rows[l].v, from + l * stride + first, sizeof(rows[l].v));
      transpose_lanes<1>(rows);
      for (int i = 0; i < width; ++i) to[first + i] = rows[i];
    }
    return;
  }
  for (int l = 0; l < width; ++l) {
    const S* row = from + (l < count ? l : count - 1) * stride;
    for (int64_t k = 0; k < columns; ++k) reinterpret_cast<S*>(to + k)[l] = row[k];
  }
}

/// to[l * stride + k] = from[k] lane l for l < count. Overwrites `from` nowhere.
template <class V, class S>
void store_transposed(const V* from, int64_t stride, int64_t columns, int64_t count, S* to) {
  constexpr int width = V::width;
  if (columns >= width && count == width) {
    for (int64_t k = 0; k < columns; k += width) {
      const int64_t first = k + width <= columns ? k : columns - width;
      V rows[width];
      for (int i = 0; i < width; ++i) rows[i] = from[first + i];
      transpose_lanes<1>(rows);
      for (int l = 0; l < width; ++l) std::memcpy(to + l * stride + first, &rows[l].v, sizeof(rows[l].v));
    }
    return;
  }
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t k = 0; k < columns; ++k) to[l * stride + k] = reinterpret_cast<const S*>(from + k)[l];
  }
}

}  // namespace anabranch::detail
