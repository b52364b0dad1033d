// Row kernels as plain loops that the compiler vectorises; each row_kernels_<isa>.cpp compiles them once with its
// flags.
//
// Everything is a template on the instruction set, or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine. float has an exp of ours (core/vector_exp.hpp); double and the erf of the
// exact gelu call libm.
#pragma once

#include <cstdint>

#include "anabranch/core/vector_exp.hpp"
#include "anabranch/experts/row_kernels.hpp"

namespace anabranch::detail {

template <Activation activation, class Sum>
[[gnu::always_inline]] inline ActivationValue<Sum> activate_lane(Sum x) {
  if constexpr (std::is_same_v<Sum, float> && activation == Activation::silu) {
    const float sigmoid = 1.0f / (1.0f + vector_exp(-x));
    return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
  } else if constexpr (std::is_same_v<Sum, float> && activation == Activation::gelu_tanh) {
    const float inner = static_cast<float>(gelu_tanh_scale) * (x + static_cast<float>(gelu_tanh_cubic) * x * x * x);
    const float t = 1.0f - 2.0f / (vector_exp(2.0f * inner) + 1.0f);
    const float slope = static_cast<float>(gelu_tanh_scale) * (1.0f + static_cast<float>(3 * gelu_tanh_cubic) * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope};
  } else {
    return activate(activation, x);
  }
}

/// Calls f with the activation as a compile-time constant, so that its loop has no branch inside.
template <CpuIsa isa, class F>
[[gnu::always_inline]] inline decltype(auto) with_activation(Activation activation, F&& f) {
  using enum Activation;
  switch (activation) {
    case silu:
      return f.template operator()<silu>();
    case gelu:
      return f.template operator()<gelu>();
    case gelu_tanh:
      return f.template operator()<gelu_tanh>();
    case relu:
      return f.template operator()<relu>();
    case relu2:
      return f.template operator()<relu2>();
    default:
      return f.template operator()<identity>();
  }
}

template <CpuIsa isa, class T>
struct RowLoops {
  using Sum = accumulate_t<T>;

  static void store(int64_t n, const Sum* __restrict from, T* __restrict to) {
    for (int64_t j = 0; j < n; ++j) to[j] = T(from[j]);
  }

  template <class Row>
  static void add(int64_t n, Sum weight, const Row* __restrict row, Sum* __restrict sum) {
    for (int64_t j = 0; j < n; ++j) sum[j] += weight * static_cast<Sum>(row[j]);
  }

  static void scale(int64_t n, const Sum* __restrict factors, Sum* __restrict row) {
    for (int64_t j = 0; j < n; ++j) row[j] *= factors[j];
  }

  static Sum dot(int64_t n, const T* left, const T* right) {
    constexpr int lanes = 16;  // independent partial sums, so that the order is fixed and the loop still vectorises
    Sum partial[lanes] = {}, sum = 0;
    int64_t j = 0;
    for (; j + lanes <= n; j += lanes) {
      for (int l = 0; l < lanes; ++l) partial[l] += static_cast<Sum>(left[j + l]) * static_cast<Sum>(right[j + l]);
    }
    for (; j < n; ++j) sum += static_cast<Sum>(left[j]) * static_cast<Sum>(right[j]);
    for (int l = 0; l < lanes; ++l) sum += partial[l];
    return sum;
  }

  static void activate_row(Activation activation, int64_t n, const Sum* __restrict gate, const Sum* __restrict up,
                           T* __restrict hidden) {
    with_activation<isa>(activation, [&]<Activation a>() {
      if (up) {
        for (int64_t j = 0; j < n; ++j) hidden[j] = T(activate_lane<a>(gate[j]).value * up[j]);
      } else {
        for (int64_t j = 0; j < n; ++j) hidden[j] = T(activate_lane<a>(gate[j]).value);
      }
    });
  }

  static Sum activate_row_backward(Activation activation, int64_t n, const T* __restrict gate, const T* __restrict up,
                                   const Sum* __restrict d, Sum weight, T* __restrict weighted_hidden,
                                   T* __restrict dgate, T* __restrict dup) {
    constexpr int64_t block = 64;
    Sum products[block], total = 0;
    with_activation<isa>(activation, [&]<Activation a>() {
      for (int64_t first = 0; first < n; first += block) {
        const int64_t count = n - first < block ? n - first : block;
        for (int64_t l = 0; l < count; ++l) {
          const int64_t j = first + l;
          const auto [value, derivative] = activate_lane<a>(static_cast<Sum>(gate[j]));
          const Sum other = up ? static_cast<Sum>(up[j]) : Sum(1);
          const Sum hidden = value * other, upstream = weight * d[j];
          products[l] = hidden * d[j];
          weighted_hidden[j] = T(weight * hidden);
          dgate[j] = T(upstream * other * derivative);
          if (up) dup[j] = T(upstream * value);
        }
        for (int64_t l = 0; l < count; ++l) total += products[l];
      }
    });
    return total;
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
RowKernels<T> row_kernels_for() {
  using Loops = detail::RowLoops<isa, T>;
  using Sum = accumulate_t<T>;
  return {Loops::store, Loops::template add<T>, Loops::template add<Sum>,    Loops::scale,
          Loops::dot,   Loops::activate_row,    Loops::activate_row_backward};
}

}  // namespace anabranch
