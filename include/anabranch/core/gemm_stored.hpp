// gemm_stored: a product of small k whose results are rounded to T in registers and written once, in the order of
// memory.
//
// A weight gradient is such a product: k is the number of rows that an expert got, the result as large as its weights,
// so writing it is the cost. Both operands are packed; then a few rows of the result at a time are written from left to
// right, two vectors together, which for bfloat16 is one whole cache line per store that need not be read first.
// Bytes: m n sizeof(T) written. FLOPs: 2 m n k. Floor: the larger of the two over what the machine can do.
// Included only by the translation unit of one instruction set.
#pragma once

#include <cstdint>

#include "anabranch/core/gemm_driver.hpp"

namespace anabranch::detail {

template <class Lanes, class T>
struct StoredTile {
  int64_t steps;
  const typename Lanes::Packed *a, *b;  // at step 0 of the first row, and of the first of two panels
  int64_t b_panel_size;
  T* out;
  int64_t out_stride;
  int64_t columns;  // 1 .. 2 * width

  template <int rows, int vectors>
  [[gnu::noinline]] static void multiply(const StoredTile& tile) {
    constexpr int width = Lanes::width;
    typename Lanes::SumVector sum[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] = Lanes::zero();
    }
    const typename Lanes::Packed *a = tile.a, *b = tile.b;
    const int64_t b_panel_size = tile.b_panel_size;
    for (int64_t step = 0; step < tile.steps; ++step, a += width, b += width) {
      typename Lanes::Vector row[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) row[v] = Lanes::load(b + v * b_panel_size);
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const typename Lanes::Vector element = Lanes::broadcast(a + i);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) sum[i][v] = Lanes::multiply_add(element, row[v], sum[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      T* const out = tile.out + i * tile.out_stride;
      if constexpr (requires { Lanes::store_rounded(out, sum[i][0], sum[i][0], 0); }) {
        Lanes::store_rounded(out, sum[i][0], sum[i][vectors - 1], tile.columns);
      } else if constexpr (std::is_same_v<T, typename Lanes::Sum>) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) Lanes::store_sum(out + v * width, sum[i][v], tile.columns - v * width);
      } else {
        typename Lanes::Sum sums[vectors * width];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) Lanes::store_sum(sums + v * width, sum[i][v]);
        for (int64_t j = 0; j < tile.columns; ++j) out[j] = T(sums[j]);
      }
    }
  }
};

template <class Lanes, class T>
void gemm_stored(const GemmArguments<T>& x) {
  using Packed = typename Lanes::Packed;
  constexpr int64_t width = Lanes::width;
  static_assert(gemm_max_stored_k <= gemm_block_k * Lanes::group);
  Packed* packed_a = static_cast<Packed*>(x.workspace);
  Packed* packed_b = packed_a + gemm_panels_a * (gemm_block_k + 1) * width;
  const int64_t steps = (x.k + Lanes::group - 1) / Lanes::group, panel = panel_size<Lanes>(x.k);
  constexpr int64_t block_rows = gemm_panels_a * width, block_columns = gemm_panels_b * width;

  for (int64_t j0 = 0; j0 < x.n; j0 += block_columns) {
    const int64_t columns = part_size(j0, x.n, block_columns);
    pack<Lanes>(x.b, j0, columns, 0, x.k, packed_b);
    for (int64_t i0 = 0; i0 < x.m; i0 += block_rows) {
      const int64_t rows = part_size(i0, x.m, block_rows);
      pack<Lanes>(x.a, i0, rows, 0, x.k, packed_a);
      for (int64_t i = 0; i < rows; i += width) {
        for_balanced_parts<Lanes>(part_size(i, rows, width), Lanes::rows, [&](int64_t row, int64_t tile_rows) {
          for (int64_t j = 0; j < columns; j += 2 * width) {
            const int64_t tile_columns = part_size(j, columns, 2 * width);
            const StoredTile<Lanes, T> tile{steps,
                                            packed_a + i / width * panel + row,
                                            packed_b + j / width * panel,
                                            panel,
                                            x.out + (i0 + i + row) * x.out_stride + j0 + j,
                                            x.out_stride,
                                            tile_columns};
            multiply_outer<Lanes, StoredTile<Lanes, T>, Lanes::rows, 2>(tile_rows, tile_columns > width ? 2 : 1, tile);
          }
        });
      }
    }
  }
}

/// What the translation units of the instruction sets instantiate: gemm() and gemm_stored().
template <class Lanes, class T>
void gemm_tile(const GemmArguments<T>& x) {
  if (x.out) return gemm_stored<Lanes>(x);
  if (x.m <= dot_rows_limit<Lanes, T> && is_k_contiguous(x.a) && is_k_contiguous(x.b)) return gemm_dot<Lanes>(x);
  if (x.m <= 2 * Lanes::rows && is_outer_contiguous(x.b)) return gemm_in_place<Lanes>(x);
  gemm_packed<Lanes>(x);
}

}  // namespace anabranch::detail
