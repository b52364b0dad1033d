// The register tile of packed operands: a sum of outer products, one per k step.
//
// rows x (vectors * width) sums stay in registers; a step loads `vectors` vectors of B and broadcasts `rows` elements
// of A, so with 8 x 3 AVX-512 registers 11 loads feed 24 FMAs and both FMA ports are busy (12 cycles a step).
#pragma once

#include <cstdint>
#include <utility>

namespace anabranch::detail {

template <class Lanes>
struct OuterTile {
  int64_t steps;
  const typename Lanes::Packed* a;  // first of `rows` elements at step 0 of a panel
  const typename Lanes::Packed* b;  // first of `vectors` panels
  int64_t b_panel_size;
  typename Lanes::Sum* c;
  int64_t c_stride;
  int64_t last_columns;  // of the last vector, 1 .. width
  bool accumulate;
};

template <class Lanes, int rows, int vectors>
[[gnu::noinline]] void multiply_outer(const OuterTile<Lanes>& tile) {
  constexpr int width = Lanes::width;
  typename Lanes::SumVector sum[rows][vectors];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = Lanes::zero();

  const typename Lanes::Packed *a = tile.a, *b = tile.b;
  const int64_t b_panel_size = tile.b_panel_size;
  for (int64_t step = 0; step < tile.steps; ++step, a += width, b += width) {
    typename Lanes::Vector column[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) column[v] = Lanes::load(b + v * b_panel_size);
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const typename Lanes::Vector element = Lanes::broadcast(a + i);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] = Lanes::multiply_add(element, column[v], sum[i][v]);
    }
  }

#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      typename Lanes::Sum* c = tile.c + i * tile.c_stride + v * width;
      if (v + 1 < vectors || tile.last_columns == width) {
        Lanes::store_sum(c, tile.accumulate ? Lanes::add(Lanes::load_sum(c), sum[i][v]) : sum[i][v]);
      } else {
        const int64_t count = tile.last_columns;
        Lanes::store_sum(c, tile.accumulate ? Lanes::add(Lanes::load_sum(c, count), sum[i][v]) : sum[i][v], count);
      }
    }
  }
}

/// Runs the instance for `rows` in [1, Lanes::rows] and `vectors` in [1, Lanes::vectors].
template <class Lanes>
void multiply_outer(int rows, int vectors, const OuterTile<Lanes>& tile) {
  using Function = void (*)(const OuterTile<Lanes>&);
  static constexpr auto table = []<int... index>(std::integer_sequence<int, index...>) {
    struct {
      Function function[sizeof...(index)];
    } result{{multiply_outer<Lanes, index / Lanes::vectors + 1, index % Lanes::vectors + 1>...}};
    return result;
  }(std::make_integer_sequence<int, Lanes::rows * Lanes::vectors>());
  table.function[(rows - 1) * Lanes::vectors + vectors - 1](tile);
}

}  // namespace anabranch::detail
