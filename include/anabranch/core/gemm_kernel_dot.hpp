// The register tile of unpacked operands that both have contiguous k: rows x columns dot products, vectorised along k.
//
// Every element of B is loaded once and used for all rows while it is in a register, so with few rows the time is that
// of streaming B from memory: there is no packed copy to write and read back. The price is a sum across each vector at
// the end, which is why many rows are better packed.
#pragma once

#include <cstdint>
#include <utility>

namespace anabranch::detail {

template <class Lanes>
constexpr int dot_columns(int rows) {
  return rows <= Lanes::rows / 2 ? Lanes::vectors + 1 : Lanes::vectors;
}

template <class Lanes, class A, class B>
struct DotTile {
  int64_t k;
  const A* const* a;  // of the rows
  const B* b[Lanes::vectors + 1];
  int64_t prefetch_ahead;  // from a row of B to the one of the next tile
  typename Lanes::Sum* c;
  int64_t c_stride;
  int64_t columns;  // of dot_columns: the others repeat a row of B and are not stored
  bool accumulate;
};

template <class Lanes, int rows, class A, class B>
[[gnu::noinline]] void multiply_dot(const DotTile<Lanes, A, B>& tile) {
  constexpr int columns = dot_columns<Lanes>(rows);
  constexpr int64_t stride = Lanes::width * Lanes::group;
  typename Lanes::SumVector sum[rows][columns];
  const A* a[rows];
  const B* b[columns];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    a[i] = tile.a[i];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) sum[i][j] = Lanes::zero();
  }
#pragma GCC unroll 4
  for (int j = 0; j < columns; ++j) b[j] = tile.b[j];

  const int64_t ahead = tile.prefetch_ahead;
  int64_t p = 0;
  for (; p + stride <= tile.k; p += stride) {
    typename Lanes::Vector column[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) {
      column[j] = Lanes::load_input(b[j] + p);
      __builtin_prefetch(b[j] + ahead + p);
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const typename Lanes::Vector row = Lanes::in_register(Lanes::load_input(a[i] + p));
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i][j] = Lanes::multiply_add(row, column[j], sum[i][j]);
    }
  }
  if (p < tile.k) {
    typename Lanes::Vector column[columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) column[j] = Lanes::load_input(b[j] + p, tile.k - p);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const typename Lanes::Vector row = Lanes::load_input(a[i] + p, tile.k - p);
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) sum[i][j] = Lanes::multiply_add(row, column[j], sum[i][j]);
    }
  }

#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) {
      if (j >= tile.columns) continue;
      typename Lanes::Sum& c = tile.c[i * tile.c_stride + j];
      const typename Lanes::Sum total = Lanes::reduce(sum[i][j]);
      c = tile.accumulate ? c + total : total;
    }
  }
}

/// Runs the instance for `rows` in [1, Lanes::rows].
template <class Lanes, class A, class B>
void multiply_dot(int rows, const DotTile<Lanes, A, B>& tile) {
  using Function = void (*)(const DotTile<Lanes, A, B>&);
  static constexpr auto table = []<int... index>(std::integer_sequence<int, index...>) {
    struct {
      Function function[sizeof...(index)];
    } result{{multiply_dot<Lanes, index + 1, A, B>...}};
    return result;
  }(std::make_integer_sequence<int, Lanes::rows>());
  table.function[rows - 1](tile);
}

}  // namespace anabranch::detail
