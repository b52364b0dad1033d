// The norm before a feed-forward block, one row at a time: what it computes, and its gradient, as plain loops.
//
//   rms:    n = x * r * weight,                r = 1 / sqrt(mean(x^2) + eps)
//   layer:  n = (x - m) * r * weight + bias,   m = mean(x), r = 1 / sqrt(mean((x - m)^2) + eps)
//
// With h = (x - m) * r (m = 0 for rms) and g = dn * weight: dweight += dn * h, dbias += dn, and
//   dx = r * (g - h * mean(g * h))             rms
//   dx = r * (g - mean(g) - h * mean(g * h))   layer
#pragma once

#include <cmath>
#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// Values are the op's enum.
enum class NormKind { none, rms, layer };

template <class T>
struct RowNorm {
  NormKind kind;
  const T* weight;  // [features] or null for 1
  const T* bias;    // [features] or null for 0
  double eps;
};

template <class Sum>
struct RowMoments {
  Sum mean, scale;  // m and r
};

template <class T>
RowMoments<accumulate_t<T>> row_moments_reference(const RowNorm<T>& norm, int64_t n, const T* x) {
  using Sum = accumulate_t<T>;
  Sum mean = 0, squares = 0;
  for (int64_t j = 0; norm.kind == NormKind::layer && j < n; ++j) mean += static_cast<Sum>(x[j]) / n;
  for (int64_t j = 0; j < n; ++j) squares += (static_cast<Sum>(x[j]) - mean) * (static_cast<Sum>(x[j]) - mean);
  return {mean, 1 / std::sqrt(squares / n + static_cast<Sum>(norm.eps))};
}

template <class T>
void normalize_reference(const RowNorm<T>& norm, int64_t n, const T* x, T* normed) {
  using Sum = accumulate_t<T>;
  const auto [mean, scale] = row_moments_reference(norm, n, x);
  for (int64_t j = 0; j < n; ++j) {
    const Sum value = (static_cast<Sum>(x[j]) - mean) * scale * (norm.weight ? static_cast<Sum>(norm.weight[j]) : 1);
    normed[j] = T(value + (norm.bias ? static_cast<Sum>(norm.bias[j]) : 0));
  }
}

/// Adds to dx, dweight and dbias.
template <class T>
void normalize_backward_reference(const RowNorm<T>& norm, int64_t n, const T* x, const accumulate_t<T>* dnormed,
                                  accumulate_t<T>* dx, accumulate_t<T>* dweight, accumulate_t<T>* dbias) {
  using Sum = accumulate_t<T>;
  const auto [mean, scale] = row_moments_reference(norm, n, x);
  const auto centred = [&](int64_t j) { return (static_cast<Sum>(x[j]) - mean) * scale; };
  const auto gradient = [&](int64_t j) {
    return dnormed[j] * (norm.weight ? static_cast<Sum>(norm.weight[j]) : Sum(1));
  };
  Sum mean_gradient = 0, mean_product = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (norm.kind == NormKind::layer) mean_gradient += gradient(j) / n;
    mean_product += gradient(j) * centred(j) / n;
    dweight[j] += dnormed[j] * centred(j);
    dbias[j] += dnormed[j];
  }
  for (int64_t j = 0; j < n; ++j) dx[j] += scale * (gradient(j) - mean_gradient - centred(j) * mean_product);
}

}  // namespace anabranch
