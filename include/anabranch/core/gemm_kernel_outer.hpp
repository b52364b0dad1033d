// The register tile of outer products: rows x (vectors * width) sums, one product of a column of A and a row of B per
// k step.
//
// A step loads `vectors` vectors of B and broadcasts `rows` elements of A, so with 8 x 3 AVX-512 registers 11 loads
// feed 24 FMAs and both FMA ports are busy (12 cycles a step). A is always packed. B is packed too where many rows of A
// repay it; else it is read, and converted, where it lies.
#pragma once

#include <cstdint>
#include <utility>

namespace anabranch::detail {

template <class Lanes>
struct OuterTile {
  int64_t steps;
  const typename Lanes::Packed* a;  // first of `rows` elements at step 0 of a panel
  typename Lanes::Sum* c;
  int64_t c_stride;
  int64_t last_columns;  // of the last vector, 1 .. width
  bool accumulate;
};

template <class Lanes, int rows, int vectors>
struct OuterSums {
  static constexpr int width = Lanes::width;
  typename Lanes::SumVector sum[rows][vectors];

  /// Asks for c early: its lines are needed at the end.
  [[gnu::always_inline]] explicit OuterSums(const OuterTile<Lanes>& tile) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sum[i][v] = Lanes::zero();
        __builtin_prefetch(tile.c + i * tile.c_stride + v * width, 1);
      }
    }
  }

  [[gnu::always_inline]] void add_product(const typename Lanes::Packed* a,
                                          const typename Lanes::Vector (&row)[vectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const typename Lanes::Vector element = Lanes::broadcast(a + i);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] = Lanes::multiply_add(element, row[v], sum[i][v]);
    }
  }

  [[gnu::always_inline]] void store(const OuterTile<Lanes>& tile) const {
    const int64_t c_stride = tile.c_stride, last_columns = tile.last_columns;
    const bool accumulate = tile.accumulate;
    typename Lanes::Sum* c = tile.c;
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        typename Lanes::Sum* to = c + i * c_stride + v * width;
        if (v + 1 < vectors || last_columns == width) {
          Lanes::store_sum(to, accumulate ? Lanes::add(Lanes::load_sum(to), sum[i][v]) : sum[i][v]);
        } else {
          Lanes::store_sum(to, accumulate ? Lanes::add(Lanes::load_sum(to, last_columns), sum[i][v]) : sum[i][v],
                           last_columns);
        }
      }
    }
  }
};

template <class Lanes>
struct PackedTile : OuterTile<Lanes> {
  const typename Lanes::Packed* b;  // first of `vectors` panels
  int64_t b_panel_size;
  const void* const* prefetch;  // lines of what is packed next, one for each of the first steps
  int64_t prefetch_count;       // at most `steps`

  template <int rows, int vectors>
  [[gnu::noinline]] static void multiply(const PackedTile& tile) {
    OuterSums<Lanes, rows, vectors> sums(tile);
    const typename Lanes::Packed *a = tile.a, *b = tile.b;
    const int64_t b_panel_size = tile.b_panel_size, steps = tile.steps, prefetch_count = tile.prefetch_count;
    const void* const* prefetch = tile.prefetch;
    const auto next_step = [&]() __attribute__((always_inline)) {
      typename Lanes::Vector row[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) row[v] = Lanes::load(b + v * b_panel_size);
      sums.add_product(a, row);
      a += Lanes::width, b += Lanes::width;
    };
    int64_t step = 0;
    for (; step < prefetch_count; ++step) {
      __builtin_prefetch(prefetch[step], 0, 2);
      next_step();
    }
    for (; step < steps; ++step) next_step();
    sums.store(tile);
  }
};

/// B's outer axis is contiguous and its rows, one for each k, are read in place.
template <class Lanes, class T>
struct InPlaceTile : OuterTile<Lanes> {
  const T* const* b;  // rows of `group` k for each step, then as many again to prefetch; null for a k past the end
  int64_t column;     // of the rows, where the tile begins
  int64_t ahead;      // from a row of b to the one prefetched with it

  template <int rows, int vectors>
  [[gnu::noinline]] static void multiply(const InPlaceTile& tile) {
    constexpr int width = Lanes::width, group = Lanes::group;
    OuterSums<Lanes, rows, vectors> sums(tile);
    const typename Lanes::Packed* a = tile.a;
    const T* const* b = tile.b;
    const int64_t steps = tile.steps, column = tile.column, ahead = tile.ahead;
    const int64_t columns = (vectors - 1) * width + tile.last_columns;
    for (int64_t step = 0; step < steps; ++step, a += width, b += group) {
      const T* from[group];
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) {
        from[g] = b[g] ? b[g] + column : nullptr;
        __builtin_prefetch(b[ahead + g] + column, 0, 2);
      }
      typename Lanes::Vector low, high;
      Lanes::load_across(from, columns, low, high);
      typename Lanes::Vector row[vectors];
      row[0] = low;
      if constexpr (vectors > 1) row[1] = high;
      sums.add_product(a, row);
    }
    sums.store(tile);
  }
};

/// Runs the instance for `rows` in [1, max_rows] and `vectors` in [1, max_vectors].
template <class Lanes, class Tile, int max_rows = Lanes::rows, int max_vectors = Lanes::vectors>
void multiply_outer(int64_t rows, int64_t vectors, const Tile& tile) {
  using Function = void (*)(const Tile&);
  static constexpr auto table = []<int... index>(std::integer_sequence<int, index...>) {
    struct {
      Function function[sizeof...(index)];
    } result{{Tile::template multiply<index / max_vectors + 1, index % max_vectors + 1>...}};
    return result;
  }(std::make_integer_sequence<int, max_rows * max_vectors>());
  table.function[(rows - 1) * max_vectors + vectors - 1](tile);
}

}  // namespace anabranch::detail
