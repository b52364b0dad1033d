// Rearranging B for packed_gemm (packed_gemm.hpp gives the layout).
//
// Where B is kept as it is multiplied and lies along k, squares of vectors are loaded and transposed: measured on one
// Zen 5 core, 0.1 s for 604 MB of bfloat16 into memory that is there already. Else element by element.
// Included only by the translation unit of one instruction set: every name depends on its Lanes or is inlined by force.
#pragma once

#include <cstdint>
#include <type_traits>

#include "anabranch/core/gemm_driver.hpp"
#include "anabranch/core/packed_gemm.hpp"

namespace anabranch::detail {

/// Vectors of the group of columns that begins at vector `first` of `all`: as many as fit, the last what is left.
template <class Lanes>
int64_t group_vectors(int64_t all, int64_t first) {
  return part_size(first, all, Lanes::packed_vectors);
}

/// How B is kept: pairs as the machine multiplies them, else as it came, widened in registers.
template <class Lanes, class Stored>
using PackedElement = std::conditional_t<(Lanes::group > 1), typename Lanes::Packed, Stored>;

/// A group of columns of B by squares of width x width, loaded along k and transposed.
template <class Lanes, class Stored>
void pack_group_k_contiguous(int64_t n, int64_t first, int64_t vectors, int64_t k_begin, int64_t k,
                             const GemmOperand<Stored>& b, typename Lanes::Packed* to) {
  constexpr int64_t width = Lanes::width, group = Lanes::group;
  const int64_t steps = (k + group - 1) / group;
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t step = 0; step < steps; step += width) {
      typename Lanes::Vector square[width];
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        const int64_t column = (first + v) * width + i, inside = column < n ? column : n - 1;
        const Stored* from = b.data + (b.outer_ids ? b.outer_ids[inside] : inside) * b.outer_stride + k_begin;
        square[i] = Lanes::load_input(from + step * group, column < n ? k - step * group : 0);
      }
      Lanes::transpose(square);
#pragma GCC unroll 16
      for (int64_t i = 0; i < width; ++i) {
        if (step + i < steps) Lanes::store(to + ((step + i) * vectors + v) * width, square[i]);
      }
    }
  }
}

template <class Lanes, class Stored>
void pack_group(int64_t n, int64_t first, int64_t vectors, int64_t k_begin, int64_t k, const GemmOperand<Stored>& b,
                Stored* to) {
  constexpr int64_t width = Lanes::width, group = Lanes::group;
  for (int64_t p = k_begin; p < k_begin + k; p += group) {
    for (int64_t column = first * width; column < (first + vectors) * width; ++column) {
      for (int64_t g = p; g < p + group; ++g) *to++ = column < n && g < k_begin + k ? b(column, g) : Stored{};
    }
  }
}

template <class Lanes, class Stored>
Stored* pack_matrix(int64_t n, int64_t k, const GemmOperand<Stored>& b, Stored* to) {
  using Packed = typename Lanes::Packed;
  constexpr int64_t width = Lanes::width, group = Lanes::group;
  for (int64_t k0 = 0; k0 < k; k0 += gemm_block_k * group) {
    const int64_t size = part_size(k0, k, gemm_block_k * group);
    const int64_t all_vectors = (n + width - 1) / width;
    for (int64_t first = 0, vectors; first < all_vectors; first += vectors) {
      vectors = group_vectors<Lanes>(all_vectors, first);
      // Where B is kept as it is multiplied, whole vectors can be moved.
      constexpr bool moves_vectors = group > 1 || std::is_same_v<Stored, Packed>;
      if constexpr (moves_vectors) {
        if (is_k_contiguous(b)) {
          pack_group_k_contiguous<Lanes>(n, first, vectors, k0, size, b, reinterpret_cast<Packed*>(to));
        } else {
          pack_group<Lanes>(n, first, vectors, k0, size, b, to);
        }
      } else {
        pack_group<Lanes>(n, first, vectors, k0, size, b, to);
      }
      to += (size + group - 1) / group * group * vectors * width;
    }
  }
  return to;
}

}  // namespace anabranch::detail
