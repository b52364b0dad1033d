// Residual kernels as plain loops that the compiler vectorises; each residual_kernels_<isa>.cpp compiles them once.
//
// Sums run in 16 lanes, in an order that depends on n alone. Everything is a template on the instruction set, or always
// inlined, so that no copy compiled with AVX-512 can be the one the linker keeps for an older machine.
#pragma once

#include <cmath>
#include <cstdint>

#include "anabranch/skip/residual_kernels.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct ResidualLoops {
  using Sum = accumulate_t<T>;

  /// Sum over j < n of term(j).
  template <class Term>
  [[gnu::always_inline]] static Sum sum_of(int64_t n, const Term& term) {
    constexpr int lanes = 16;
    Sum partial[lanes] = {}, sum = 0;
    int64_t j = 0;
    for (; j + lanes <= n; j += lanes) {
      for (int l = 0; l < lanes; ++l) partial[l] += term(j + l);
    }
    for (; j < n; ++j) sum += term(j);
    for (int l = 0; l < lanes; ++l) sum += partial[l];
    return sum;
  }

  [[gnu::always_inline]] static RowMoments<Sum> moments(const RowNorm<T>& norm, int64_t n, const T* __restrict x) {
    const auto value = [x](int64_t j) __attribute__((always_inline)) { return static_cast<Sum>(x[j]); };
    const Sum mean = norm.kind == NormKind::layer ? sum_of(n, value) / static_cast<Sum>(n) : Sum(0);
    const auto square = [&](int64_t j) __attribute__((always_inline)) { return (value(j) - mean) * (value(j) - mean); };
    return {mean, 1 / std::sqrt(sum_of(n, square) / static_cast<Sum>(n) + static_cast<Sum>(norm.eps))};
  }

  static void normalize(const RowNorm<T>& norm, int64_t n, const T* __restrict x, T* __restrict normed) {
    const auto [mean, scale] = moments(norm, n, x);
    const T* __restrict weight = norm.weight, * __restrict bias = norm.bias;
    if (weight && bias) {
      for (int64_t j = 0; j < n; ++j) {
        normed[j] =
            T((static_cast<Sum>(x[j]) - mean) * scale * static_cast<Sum>(weight[j]) + static_cast<Sum>(bias[j]));
      }
    } else if (weight) {
      for (int64_t j = 0; j < n; ++j) {
        normed[j] = T((static_cast<Sum>(x[j]) - mean) * scale * static_cast<Sum>(weight[j]));
      }
    } else {
      for (int64_t j = 0; j < n; ++j) {
        const Sum value = (static_cast<Sum>(x[j]) - mean) * scale;
        normed[j] = T(bias ? value + static_cast<Sum>(bias[j]) : value);
      }
    }
  }

  static void normalize_backward(const RowNorm<T>& norm, int64_t n, const T* __restrict x, const T* __restrict dnormed,
                                 const T* __restrict residual, T* __restrict dx, Sum* __restrict dweight,
                                 Sum* __restrict dbias) {
    const auto row = moments(norm, n, x);
    const Sum mean = row.mean, scale = row.scale;
    const T* __restrict weight = norm.weight;
    const auto centred = [&](int64_t j)
                             __attribute__((always_inline)) { return (static_cast<Sum>(x[j]) - mean) * scale; };
    const auto gradient = [&](int64_t j) __attribute__((always_inline)) {
      return weight ? static_cast<Sum>(dnormed[j]) * static_cast<Sum>(weight[j]) : static_cast<Sum>(dnormed[j]);
    };
    const auto product = [&](int64_t j) __attribute__((always_inline)) { return gradient(j) * centred(j); };
    const Sum mean_gradient = norm.kind == NormKind::layer ? sum_of(n, gradient) / static_cast<Sum>(n) : Sum(0);
    const Sum mean_product = sum_of(n, product) / static_cast<Sum>(n);
    for (int64_t j = 0; j < n; ++j) {
      const Sum d = static_cast<Sum>(dnormed[j]);
      dweight[j] += d * centred(j);
      dbias[j] += d;
    }
    for (int64_t j = 0; dx && j < n; ++j) {
      const Sum part = scale * (gradient(j) - mean_gradient - centred(j) * mean_product);
      dx[j] = T(residual ? static_cast<Sum>(residual[j]) + part : part);
    }
  }

  static void add(int64_t n, const T* __restrict x, const T* __restrict base, Sum scale, const Sum* __restrict sums,
                  T* __restrict y) {
    if (x && sums && !base) {
      for (int64_t j = 0; j < n; ++j) y[j] = T(static_cast<Sum>(x[j]) + scale * sums[j]);
    } else if (x && base && !sums) {
      for (int64_t j = 0; j < n; ++j) y[j] = T(static_cast<Sum>(x[j]) + static_cast<Sum>(base[j]));
    } else {
      for (int64_t j = 0; j < n; ++j) {
        Sum value = sums ? scale * sums[j] : Sum(0);
        if (x) value += static_cast<Sum>(x[j]);
        if (base) value += static_cast<Sum>(base[j]);
        y[j] = T(value);
      }
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
ResidualKernels<T> residual_kernels_for() {
  using Loops = detail::ResidualLoops<isa, T>;
  return {Loops::normalize, Loops::normalize_backward, Loops::add};
}

}  // namespace anabranch
