// The products of streams with the projection's weights, as a problem of their own: what the GPU's kernels make first.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// Rows of x, `part` numbers each, with weight [products, part]. Mixed (`coefficients` given): a row is a token's
/// streams [n, C], the part is n C.
template <class T>
struct StreamProducts {
  using Sum = accumulate_t<T>;
  const T* x;
  int64_t rows, part;
  const Sum* weight;
  int64_t products;
  bool centered;            // never where mixed
  int64_t streams;          // mixed: n; else 1
  const Sum* coefficients;  // [rows, n (n + 2)]: of the post before, and of u
  const T* y;               // [rows, C]: x is mixed with H and q, and written to out; or null
  T *out, *u;               // u by p; or null
  int64_t splits;           // of the channels, product_splits()
  Sum* parts;               // [splits, rows, products + 3]
};

}  // namespace anabranch
