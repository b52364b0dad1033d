// How one gemm() call is cut into register tiles.
//
// Few rows, both operands contiguous along k: dot products straight from memory. Everything else is packed: a block of
// A (512 rows x 256 steps with AVX-512) that stays in L2, and panels of B that each meet all of A's rows before the
// next is packed. Included only by the translation unit of one instruction set; every name depends on its Lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "anabranch/core/gemm_cpu.hpp"
#include "anabranch/core/gemm_kernel_dot.hpp"
#include "anabranch/core/gemm_kernel_outer.hpp"
#include "anabranch/core/gemm_pack.hpp"

namespace anabranch::detail {

/// f(begin, size) over ceil(count / largest) nearly equal parts of [0, count).
template <class Lanes, class F>
void for_balanced_parts(int64_t count, int64_t largest, F&& f) {
  const int64_t parts = (count + largest - 1) / largest;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    f(begin, end - begin);
  }
}

template <class Lanes, class T>
void gemm_packed(const GemmArguments<T>& x) {
  using Packed = typename Lanes::Packed;
  constexpr int64_t width = Lanes::width;
  constexpr int64_t block_k = gemm_block_k * Lanes::group;
  Packed* packed_a = static_cast<Packed*>(x.workspace);
  Packed* packed_b = packed_a + gemm_panels_a * gemm_block_k * width;
  // Rows of B that are contiguous along its outer axis are read whole, in the order of memory; transposing rows instead
  // leaves one register tile's panels in L1 for the kernel.
  const int64_t panels_b = is_k_contiguous(x.b) ? Lanes::vectors : gemm_panels_b;

  for (int64_t i0 = 0; i0 < x.m; i0 += gemm_panels_a * width) {
    const int64_t rows = x.m - i0 < gemm_panels_a * width ? x.m - i0 : gemm_panels_a * width;
    for (int64_t k0 = 0; k0 < x.k; k0 += block_k) {
      const int64_t k = x.k - k0 < block_k ? x.k - k0 : block_k;
      const int64_t panel = panel_size<Lanes>(k);
      pack<Lanes>(x.a, i0, rows, k0, k, packed_a);
      for (int64_t j0 = 0; j0 < x.n; j0 += panels_b * width) {
        const int64_t columns = x.n - j0 < panels_b * width ? x.n - j0 : panels_b * width;
        pack<Lanes>(x.b, j0, columns, k0, k, packed_b);
        for_balanced_parts<Lanes>((columns + width - 1) / width, Lanes::vectors, [&](int64_t first, int64_t vectors) {
          const int64_t end = (first + vectors) * width < columns ? (first + vectors) * width : columns;
          OuterTile<Lanes> tile{.steps = (k + Lanes::group - 1) / Lanes::group,
                                .a = nullptr,
                                .b = packed_b + first * panel,
                                .b_panel_size = panel,
                                .c = nullptr,
                                .c_stride = x.c_stride,
                                .last_columns = end - (first + vectors - 1) * width,
                                .accumulate = x.accumulate || k0 > 0};
          for (int64_t i = 0; i < rows; i += width) {
            const int64_t panel_rows = rows - i < width ? rows - i : width;
            for_balanced_parts<Lanes>(panel_rows, Lanes::rows, [&](int64_t row, int64_t tile_rows) {
              tile.a = packed_a + i / width * panel + row;
              tile.c = x.c + (i0 + i + row) * x.c_stride + j0 + first * width;
              multiply_outer<Lanes>(static_cast<int>(tile_rows), static_cast<int>(vectors), tile);
            });
          }
        });
      }
    }
  }
}

/// A's rows as the dot kernel reads them: in place where T needs no conversion, else converted once for all of B.
template <class Lanes, class T>
void gemm_dot(const GemmArguments<T>& x) {
  constexpr bool converts = sizeof(T) * Lanes::group != sizeof(typename Lanes::Packed);
  constexpr int64_t block_k = 2048;
  constexpr int64_t vector = Lanes::width * Lanes::group;
  using A = std::conditional_t<converts, typename Lanes::Packed, T>;
  using Tile = DotTile<Lanes, A, T>;

  for_balanced_parts<Lanes>(x.m, Lanes::rows, [&](int64_t i0, int64_t rows) {
    for (int64_t k0 = 0; k0 < x.k; k0 += block_k) {
      Tile tile{};
      tile.k = x.k - k0 < block_k ? x.k - k0 : block_k;
      tile.c_stride = x.c_stride;
      tile.accumulate = x.accumulate || k0 > 0;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = x.a.outer_ids ? x.a.outer_ids[i0 + i] : i0 + i;
        const T* from = x.a.data + row * x.a.outer_stride + k0;
        if constexpr (converts) {
          A* to = static_cast<A*>(x.workspace) + i * block_k;
          int64_t p = 0;
          for (; p + vector <= tile.k; p += vector) Lanes::store(to + p, Lanes::load_input(from + p));
          if (p < tile.k) Lanes::store(to + p, Lanes::load_input(from + p, tile.k - p));
          tile.a[i] = to;
        } else {
          tile.a[i] = from;
        }
      }
      const int64_t columns = dot_columns<Lanes>(static_cast<int>(rows));
      for (int64_t j0 = 0; j0 < x.n; j0 += columns) {
        tile.columns = x.n - j0 < columns ? x.n - j0 : columns;
        for (int64_t j = 0; j < columns; ++j) {
          const int64_t outer = j0 + (j < tile.columns ? j : 0);
          tile.b[j] = x.b.data + (x.b.outer_ids ? x.b.outer_ids[outer] : outer) * x.b.outer_stride + k0;
        }
        tile.c = x.c + i0 * x.c_stride + j0;
        multiply_dot<Lanes>(static_cast<int>(rows), tile);
      }
    }
  });
}

template <class Lanes, class T>
void gemm_tile(const GemmArguments<T>& x) {
  if (x.m <= Lanes::rows && is_k_contiguous(x.a) && is_k_contiguous(x.b)) return gemm_dot<Lanes>(x);
  gemm_packed<Lanes>(x);
}

}  // namespace anabranch::detail
