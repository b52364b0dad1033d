// The one matrix product of the library: what it computes, and its plain-loop definition.
//
// Every GEMM in every room is this product on a tile: rows picked by ids on either side, any strides, sums kept in
// accumulate_t<T>. The rooms cut their work into tiles and call it from their own threads; it never starts one.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// A matrix of logical shape [outer, k]: element (i, p) lies at
/// data[(outer_ids ? outer_ids[i] : i) * outer_stride + (k_ids ? k_ids[p] : p) * k_stride].
template <class T>
struct GemmOperand {
  const T* data;
  int64_t outer_stride;
  int64_t k_stride;
  const int32_t* outer_ids = nullptr;
  const int32_t* k_ids = nullptr;

  const T& operator()(int64_t i, int64_t p) const {
    return data[(outer_ids ? outer_ids[i] : i) * outer_stride + (k_ids ? k_ids[p] : p) * k_stride];
  }
};

/// c[i * c_stride + j] (+)= sum_p a(i, p) * b(j, p) for i < m, j < n, p < k; `accumulate` adds to what is there.
template <class T>
void gemm_reference(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b,
                    accumulate_t<T>* c, int64_t c_stride, bool accumulate) {
  using Sum = accumulate_t<T>;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      Sum sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += static_cast<Sum>(a(i, p)) * static_cast<Sum>(b(j, p));
      c[i * c_stride + j] = accumulate ? c[i * c_stride + j] + sum : sum;
    }
  }
}

}  // namespace anabranch
