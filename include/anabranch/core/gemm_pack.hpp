// Packing: a block of an operand becomes panels [ceil(rows / width)][steps][width], one step being `group` k.
//
// The kernel then reads both operands front to back whatever their strides were. Rows and k that a panel has beyond
// the operand are zeros. bfloat16 and half become float on the way, except where the machine multiplies bfloat16 pairs.
#pragma once

#include <cstdint>

#include "anabranch/core/gemm.hpp"

namespace anabranch::detail {

[[gnu::always_inline]] constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Distance of panels for `k` values, in Packed elements: a multiple of width vectors, so whole transposed squares fit,
/// and one more, so that equal steps of neighbouring panels, which are written together, lie in different cache sets.
template <class Lanes>
int64_t panel_size(int64_t k) {
  return (round_up((k + Lanes::group - 1) / Lanes::group, Lanes::width) + 1) * Lanes::width;
}

/// k is contiguous: squares of width x width are loaded along k and transposed.
template <class Lanes, class T>
void pack_k_contiguous(const GemmOperand<T>& x, int64_t outer_begin, int64_t outer_count, int64_t k_begin, int64_t k,
                       typename Lanes::Packed* to) {
  constexpr int width = Lanes::width;
  constexpr int64_t square = width * Lanes::group;
  for (int64_t panel = 0; panel < outer_count; panel += width, to += panel_size<Lanes>(k)) {
    const int64_t rows = outer_count - panel < width ? outer_count - panel : width;
    const T* row[width];
    for (int i = 0; i < width; ++i) {
      const int64_t outer = outer_begin + panel + (i < rows ? i : rows - 1);
      row[i] = x.data + (x.outer_ids ? x.outer_ids[outer] : outer) * x.outer_stride + k_begin;
    }
    for (int64_t p = 0; p < k; p += square) {
      typename Lanes::Vector v[width];
      if (rows == width && k - p >= square) {
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) v[i] = Lanes::load_input(row[i] + p);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) v[i] = Lanes::load_input(row[i] + p, i < rows ? k - p : 0);
      }
      Lanes::transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) Lanes::store(to + p / Lanes::group * width + i * width, v[i]);
    }
  }
}

/// The outer axis is contiguous: each k row is read once, front to back, into all panels.
template <class Lanes, class T>
void pack_outer_contiguous(const GemmOperand<T>& x, int64_t outer_begin, int64_t outer_count, int64_t k_begin,
                           int64_t k, typename Lanes::Packed* to) {
  constexpr int width = Lanes::width;
  const int64_t size = panel_size<Lanes>(k);
  for (int64_t p = 0; p < k; p += Lanes::group) {
    const T* row[Lanes::group];
    for (int g = 0; g < Lanes::group; ++g) {
      const int64_t index = k_begin + p + g;
      row[g] = p + g < k ? x.data + (x.k_ids ? x.k_ids[index] : index) * x.k_stride + outer_begin : nullptr;
    }
    typename Lanes::Packed* step = to + p / Lanes::group * width;
    for (int64_t outer = 0; outer < outer_count; outer += 2 * width, step += 2 * size) {
      typename Lanes::Vector low, high;
      Lanes::load_across(row, outer_count - outer, low, high);
      Lanes::store(step, low);
      if (outer + width < outer_count) Lanes::store(step + size, high);
      for (int g = 0; g < Lanes::group; ++g) row[g] = row[g] ? row[g] + 2 * width : nullptr;
    }
  }
}

/// Any strides and ids, element by element.
template <class Lanes, class T>
void pack_scattered(const GemmOperand<T>& x, int64_t outer_begin, int64_t outer_count, int64_t k_begin, int64_t k,
                    typename Lanes::Packed* to) {
  constexpr int width = Lanes::width;
  for (int64_t panel = 0; panel < outer_count; panel += width, to += panel_size<Lanes>(k)) {
    for (int64_t p = 0; p < k; p += Lanes::group) {
      for (int64_t i = 0; i < width; ++i) {
        T values[Lanes::group] = {};
        const int64_t outer = outer_begin + panel + i;
        for (int64_t g = 0; g < Lanes::group && p + g < k && panel + i < outer_count; ++g) {
          const int64_t index = k_begin + p + g;
          values[g] = x.data[(x.outer_ids ? x.outer_ids[outer] : outer) * x.outer_stride +
                             (x.k_ids ? x.k_ids[index] : index) * x.k_stride];
        }
        to[p / Lanes::group * width + i] = Lanes::convert(values);
      }
    }
  }
}

template <class T>
[[gnu::always_inline]] inline bool is_k_contiguous(const GemmOperand<T>& x) {
  return x.k_stride == 1 && !x.k_ids;
}

template <class T>
[[gnu::always_inline]] inline bool is_outer_contiguous(const GemmOperand<T>& x) {
  return x.outer_stride == 1 && !x.outer_ids;
}

template <class Lanes, class T>
void pack(const GemmOperand<T>& x, int64_t outer_begin, int64_t outer_count, int64_t k_begin, int64_t k,
          typename Lanes::Packed* to) {
  if (is_k_contiguous(x)) return pack_k_contiguous<Lanes>(x, outer_begin, outer_count, k_begin, k, to);
  if (is_outer_contiguous(x)) return pack_outer_contiguous<Lanes>(x, outer_begin, outer_count, k_begin, k, to);
  pack_scattered<Lanes>(x, outer_begin, outer_count, k_begin, k, to);
}

}  // namespace anabranch::detail
