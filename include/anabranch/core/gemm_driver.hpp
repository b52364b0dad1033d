// How one gemm() call is cut into register tiles.
//
// Three ways, chosen by m and the strides alone (bounds with AVX-512):
//   dot       m <= 8 (16 in two-byte types), both operands contiguous along k: dot products straight from memory.
//   in place  m <= 16, B contiguous along its outer axis: outer products of packed A with rows of B where they lie.
//   packed    all else: a block of A (512 rows x 256 k) that stays in L2, and panels of B (48 x 256 k) that each meet
//             all of A's rows while they are in L1. While one panel is multiplied the next is prefetched.
// The first two stream B from memory once and write no copy of it, so their floor is bytes of B / bandwidth; the last
// one's is 2 m n k / peak, and its copies cost about 1/4 cycle an element: n / 64 cycles pay for one of A, m / 64 for
// one of B. Included only by the translation unit of one instruction set: every name depends on its Lanes or is inlined
// by force.
#pragma once

#include <cstdint>
#include <type_traits>

#include "anabranch/core/gemm_cpu.hpp"
#include "anabranch/core/gemm_kernel_dot.hpp"
#include "anabranch/core/gemm_kernel_outer.hpp"
#include "anabranch/core/gemm_pack.hpp"

namespace anabranch::detail {

/// Size of the part of [begin, end) that begins there and has at most `largest`.
[[gnu::always_inline]] inline int64_t part_size(int64_t begin, int64_t end, int64_t largest) {
  return end - begin < largest ? end - begin : largest;
}

/// f(begin, size) over ceil(count / largest) nearly equal parts of [0, count).
template <class Lanes, class F>
void for_balanced_parts(int64_t count, int64_t largest, F&& f) {
  const int64_t parts = (count + largest - 1) / largest;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    f(begin, end - begin);
  }
}

/// How many register tiles a block of rows x columns sums makes.
template <class Lanes>
int64_t block_calls(int64_t rows, int64_t columns) {
  constexpr int64_t width = Lanes::width;
  const auto tiles = [](int64_t count, int64_t largest) { return (count + largest - 1) / largest; };
  return (rows / width * tiles(width, Lanes::rows) + tiles(rows % width, Lanes::rows)) *
         tiles(tiles(columns, width), Lanes::vectors);
}

/// The cache lines of a block of B in the order in which pack() will read them, handed out a few at a time.
template <class Lanes, class T>
class LinesAhead {
 public:
  LinesAhead(const GemmOperand<T>& b, int64_t outer_begin, int64_t outer_count, int64_t k_begin, int64_t k)
      : b_(b), by_outer_(is_k_contiguous(b)), outer_begin_(outer_begin), k_begin_(k_begin) {
    const int64_t row_bytes = (by_outer_ ? k : outer_count) * static_cast<int64_t>(sizeof(T));
    lines_of_row_ = (row_bytes + line_bytes - 1) / line_bytes;
    lines_ = lines_of_row_ * (by_outer_ ? outer_count : k);
  }

  int64_t lines() const { return lines_; }

  /// Writes the addresses of lines [begin, end).
  void write(int64_t begin, int64_t end, const void** to) const {
    if (begin >= end) return;
    int64_t row = begin / lines_of_row_, line = begin % lines_of_row_;
    const char* at = start(row);
    for (; begin < end; ++begin) {
      *to++ = at + line * line_bytes;
      if (++line == lines_of_row_ && begin + 1 < end) at = start(++row), line = 0;
    }
  }

 private:
  static constexpr int64_t line_bytes = 64;

  const char* start(int64_t row) const {
    const int64_t outer = outer_begin_ + (by_outer_ ? row : 0), k = k_begin_ + (by_outer_ ? 0 : row);
    return reinterpret_cast<const char*>(b_.data + (b_.outer_ids ? b_.outer_ids[outer] : outer) * b_.outer_stride +
                                         (b_.k_ids ? b_.k_ids[k] : k) * b_.k_stride);
  }

  const GemmOperand<T>& b_;
  bool by_outer_;
  int64_t outer_begin_, k_begin_, lines_of_row_, lines_;
};

template <class Lanes, class T>
void gemm_packed(const GemmArguments<T>& x) {
  using Packed = typename Lanes::Packed;
  constexpr int64_t width = Lanes::width;
  constexpr int64_t block_k = gemm_block_k * Lanes::group;
  constexpr int64_t block_rows = gemm_panels_a * width;
  Packed* packed_a = static_cast<Packed*>(x.workspace);
  Packed* packed_b = packed_a + gemm_panels_a * (gemm_block_k + 1) * width;
  // Rows of B that are contiguous along its outer axis are read whole, in the order of memory; transposing rows instead
  // leaves one register tile's panels in L1 for the kernel.
  const int64_t block_columns = (is_k_contiguous(x.b) ? Lanes::vectors : gemm_panels_b) * width;

  for (int64_t i0 = 0; i0 < x.m; i0 += block_rows) {
    const int64_t rows = part_size(i0, x.m, block_rows);
    for (int64_t k0 = 0; k0 < x.k; k0 += block_k) {
      const int64_t k = part_size(k0, x.k, block_k);
      const int64_t panel = panel_size<Lanes>(k);
      pack<Lanes>(x.a, i0, rows, k0, k, packed_a);
      for (int64_t j0 = 0; j0 < x.n; j0 += block_columns) {
        const int64_t columns = part_size(j0, x.n, block_columns);
        pack<Lanes>(x.b, j0, columns, k0, k, packed_b);

        const bool last_columns = j0 + columns >= x.n;
        const int64_t next_j0 = last_columns ? 0 : j0 + columns;
        const int64_t next_k0 = last_columns ? k0 + k : k0;
        const LinesAhead<Lanes, T> ahead(x.b, next_j0, part_size(next_j0, x.n, block_columns), next_k0,
                                         part_size(next_k0, x.k, block_k));
        const int64_t calls = block_calls<Lanes>(rows, columns);
        int64_t call = 0;
        const void* lines[gemm_block_k];

        for_balanced_parts<Lanes>((columns + width - 1) / width, Lanes::vectors, [&](int64_t first, int64_t vectors) {
          const int64_t tile_columns = part_size(first * width, columns, vectors * width);
          PackedTile<Lanes> tile{{.steps = (k + Lanes::group - 1) / Lanes::group,
                                  .a = nullptr,
                                  .c = nullptr,
                                  .c_stride = x.c_stride,
                                  .last_columns = tile_columns - (vectors - 1) * width,
                                  .accumulate = x.accumulate || k0 > 0},
                                 packed_b + first * panel,
                                 panel,
                                 lines,
                                 0};
          for (int64_t i = 0; i < rows; i += width) {
            for_balanced_parts<Lanes>(part_size(i, rows, width), Lanes::rows, [&](int64_t row, int64_t tile_rows) {
              const int64_t line = ahead.lines() * call / calls;
              tile.prefetch_count = part_size(line, ahead.lines() * (call + 1) / calls, tile.steps);
              ahead.write(line, line + tile.prefetch_count, lines);
              ++call;
              tile.a = packed_a + i / width * panel + row;
              tile.c = x.c + (i0 + i + row) * x.c_stride + j0 + first * width;
              multiply_outer<Lanes>(tile_rows, vectors, tile);
            });
          }
        });
      }
    }
  }
}

/// Few rows of A, and B contiguous along its outer axis: B is read in place, so few k at a time that their rows are
/// prefetched in the order of memory, with the sums waiting in c.
template <class Lanes, class T>
void gemm_in_place(const GemmArguments<T>& x) {
  using Packed = typename Lanes::Packed;
  constexpr int64_t width = Lanes::width, group = Lanes::group;
  constexpr int64_t block_k = gemm_block_k * group, rows_k = 32 * group;
  Packed* packed_a = static_cast<Packed*>(x.workspace);

  for (int64_t k0 = 0; k0 < x.k; k0 += rows_k) {
    const int64_t k_in_block = k0 % block_k, panel = panel_size<Lanes>(part_size(k0 - k_in_block, x.k, block_k));
    if (k_in_block == 0) pack<Lanes>(x.a, 0, x.m, k0, part_size(k0, x.k, block_k), packed_a);
    const int64_t k = part_size(k0, x.k, rows_k);
    const T* b[2 * rows_k];
    for (int64_t p = 0; p < 2 * rows_k; ++p) {
      const int64_t at = k0 + p < x.k ? k0 + p : x.k - 1;
      b[p] = p >= k && p < rows_k ? nullptr : x.b.data + (x.b.k_ids ? x.b.k_ids[at] : at) * x.b.k_stride;
    }
    for_balanced_parts<Lanes>((x.n + width - 1) / width, Lanes::packed_vectors, [&](int64_t first, int64_t vectors) {
      const int64_t tile_columns = part_size(first * width, x.n, vectors * width);
      InPlaceTile<Lanes, T> tile{{.steps = (k + group - 1) / group,
                                  .a = nullptr,
                                  .c = nullptr,
                                  .c_stride = x.c_stride,
                                  .last_columns = tile_columns - (vectors - 1) * width,
                                  .accumulate = x.accumulate || k0 > 0},
                                 b,
                                 first * width,
                                 rows_k};
      for (int64_t i = 0; i < x.m; i += width) {
        for_balanced_parts<Lanes>(part_size(i, x.m, width), Lanes::packed_rows, [&](int64_t row, int64_t tile_rows) {
          tile.a = packed_a + i / width * panel + k_in_block / group * width + row;
          tile.c = x.c + (i + row) * x.c_stride + first * width;
          multiply_outer<Lanes, InPlaceTile<Lanes, T>, Lanes::packed_rows, Lanes::packed_vectors>(tile_rows, vectors,
                                                                                                  tile);
        });
      }
    });
  }
}

/// Largest m for which dot products beat packing B.
template <class Lanes, class T>
constexpr int64_t dot_rows_limit = sizeof(T) == 2 ? 2 * Lanes::rows : Lanes::rows;

/// A's rows are read in place where T needs no conversion, else converted once for all of B. A few rows of B at a time
/// meet all of A while they are in L1, and the next few are prefetched meanwhile.
template <class Lanes, class T>
void gemm_dot(const GemmArguments<T>& x) {
  constexpr bool converts = sizeof(T) * Lanes::group != sizeof(typename Lanes::Packed);
  constexpr int64_t block_k = 4096 / sizeof(T);
  constexpr int64_t vector = Lanes::width * Lanes::group;
  using A = std::conditional_t<converts, typename Lanes::Packed, T>;

  const A* a[dot_rows_limit<Lanes, T>];
  const int64_t columns = x.m <= Lanes::rows ? dot_columns<Lanes>(static_cast<int>(x.m)) : Lanes::vectors;
  for (int64_t k0 = 0; k0 < x.k; k0 += block_k) {
    const int64_t k = part_size(k0, x.k, block_k);
    for (int64_t i = 0; i < x.m; ++i) {
      const T* from = x.a.data + (x.a.outer_ids ? x.a.outer_ids[i] : i) * x.a.outer_stride + k0;
      if constexpr (converts) {
        A* to = static_cast<A*>(x.workspace) + i * block_k;
        int64_t p = 0;
        for (; p + vector <= k; p += vector) Lanes::store(to + p, Lanes::load_input(from + p));
        if (p < k) Lanes::store(to + p, Lanes::load_input(from + p, k - p));
        a[i] = to;
      } else {
        a[i] = from;
      }
    }
    DotTile<Lanes, A, T> tile{};
    tile.k = k;
    tile.prefetch_ahead = columns * x.b.outer_stride;
    tile.c_stride = x.c_stride;
    tile.accumulate = x.accumulate || k0 > 0;
    for (int64_t j0 = 0; j0 < x.n; j0 += columns) {
      tile.columns = part_size(j0, x.n, columns);
      for (int64_t j = 0; j <= Lanes::vectors; ++j) {
        const int64_t outer = j0 + (j < tile.columns ? j : 0);
        tile.b[j] = x.b.data + (x.b.outer_ids ? x.b.outer_ids[outer] : outer) * x.b.outer_stride + k0;
      }
      for_balanced_parts<Lanes>(x.m, Lanes::rows, [&](int64_t i0, int64_t rows) {
        tile.a = a + i0;
        tile.c = x.c + i0 * x.c_stride + j0;
        multiply_dot<Lanes>(static_cast<int>(rows), tile);
      });
    }
  }
}

}  // namespace anabranch::detail
