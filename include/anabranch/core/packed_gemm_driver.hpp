// How packed_gemm is cut: as many rows of A as registers hold, and a stretch of B that all of them meet in turn.
//
// For each block of 256 steps and each group of columns: rows x (2 vectors) sums, with AVX-512 up to 14 rows, so a
// step's 2 loads of B and 14 broadcasts of A feed 28 FMAs and the floor is 2 m n k / peak. Tall, because up to 14 rows
// then read B once; a group's stretch of B is 32 KB, which further rows find in cache. The next stretch is prefetched
// meanwhile, evenly over the rows, so that with few rows the floor is bytes of B / bandwidth and in between the two
// overlap.
// A is read where it lies if its rows are contiguous and need no conversion, else copied once per block of k.
// Included only by the translation unit of one instruction set: every name depends on its Lanes or is inlined by force.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "anabranch/core/gemm_driver.hpp"
#include "anabranch/core/packed_gemm.hpp"

namespace anabranch::detail {

/// f(first vector, vectors) over the groups of a packed matrix of n columns.
template <class Lanes, class F>
void for_column_groups(int64_t n, F&& f) {
  for_balanced_parts<Lanes>((n + Lanes::width - 1) / Lanes::width, Lanes::packed_vectors, std::forward<F>(f));
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
    for_column_groups<Lanes>(n, [&](int64_t first, int64_t vectors) {
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
    });
  }
  return to;
}

template <class Lanes, class Stored>
struct PackedBTile {
  using Element = PackedElement<Lanes, Stored>;
  int64_t steps;
  const typename Lanes::Packed* const* a;  // of the rows, at step 0
  const Element* b;
  typename Lanes::Sum* c;
  int64_t c_stride;
  int64_t last_columns;  // of the last vector, 1 .. width
  bool accumulate;
  const char* ahead;  // what to prefetch: `ahead_lines` lines, up to 3 a step
  int64_t ahead_lines, ahead_per_step;

  template <int rows, int vectors>
  [[gnu::noinline]] static void multiply(const PackedBTile& tile) {
    constexpr int width = Lanes::width;
    const OuterTile<Lanes> target{tile.steps, nullptr, tile.c, tile.c_stride, tile.last_columns, tile.accumulate};
    OuterSums<Lanes, rows, vectors> sums(target);
    const typename Lanes::Packed* a[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) a[i] = tile.a[i];
    const Element* b = tile.b;
    const int64_t steps = tile.steps;
    const auto step_at = [&](int64_t step) __attribute__((always_inline)) {
      typename Lanes::Vector row[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        if constexpr (Lanes::group > 1) {
          row[v] = Lanes::load(b + v * width);
        } else {
          row[v] = Lanes::in_register(Lanes::load_input(b + v * width));
        }
      }
      b += vectors * width;
#pragma GCC unroll 16
      for (int i = 0; i < rows; ++i) {
        const typename Lanes::Vector element = Lanes::broadcast(a[i] + step);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums.sum[i][v] = Lanes::multiply_add(element, row[v], sums.sum[i][v]);
      }
    };
    const int64_t per_step = tile.ahead_per_step;
    int64_t step = 0, prefetching = per_step > 0 ? tile.ahead_lines / per_step : 0;
    if (prefetching > steps) prefetching = steps;
    for (const char* ahead = tile.ahead; step < prefetching; ++step, ahead += per_step * 64) {
      __builtin_prefetch(ahead, 0, 3);
      if (per_step > 1) __builtin_prefetch(ahead + 64, 0, 3);
      if (per_step > 2) __builtin_prefetch(ahead + 128, 0, 3);
      step_at(step);
    }
    for (; step < steps; ++step) step_at(step);
    sums.store(target);
  }
};

/// Rows of A as the kernel broadcasts from them: in place, or converted into `to` with `stride` elements a row.
template <class Lanes, class T>
void broadcast_rows(const GemmOperand<T>& a, int64_t first, int64_t count, int64_t k_begin, int64_t k,
                    typename Lanes::Packed* to, int64_t stride, const typename Lanes::Packed** rows) {
  using Packed = typename Lanes::Packed;
  constexpr bool converts = sizeof(T) * Lanes::group != sizeof(Packed);
  constexpr int64_t vector = Lanes::width * Lanes::group;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t outer = first + i;
    const T* from = a.data + (a.outer_ids ? a.outer_ids[outer] : outer) * a.outer_stride;
    if (is_k_contiguous(a)) {
      from += k_begin;
      if (!converts && k % Lanes::group == 0) {
        rows[i] = reinterpret_cast<const Packed*>(from);
        continue;
      }
      int64_t p = 0;
      for (; p + vector <= k; p += vector) Lanes::store(to + p / Lanes::group, Lanes::load_input(from + p));
      if (p < k) Lanes::store(to + p / Lanes::group, Lanes::load_input(from + p, k - p));
    } else {
      for (int64_t p = 0; p < k; p += Lanes::group) {
        T values[Lanes::group] = {};
        for (int64_t g = 0; g < Lanes::group && p + g < k; ++g) {
          const int64_t index = k_begin + p + g;
          values[g] = from[(a.k_ids ? a.k_ids[index] : index) * a.k_stride];
        }
        to[p / Lanes::group] = Lanes::convert(values);
      }
    }
    rows[i] = to;
    to += stride;
  }
}

template <class Lanes, class T, class Stored>
void packed_gemm(const PackedGemm<T, Stored>& x) {
  using Packed = typename Lanes::Packed;
  using Element = PackedElement<Lanes, Stored>;
  constexpr int64_t width = Lanes::width, block_k = gemm_block_k * Lanes::group, block_rows = 256;
  // A row beside the next begins in another cache set; the last vector of a row may be stored whole.
  constexpr int64_t row_stride = gemm_block_k + 2 * width;
  static_assert(block_rows * row_stride * sizeof(Packed) <= gemm_workspace_bytes);
  const Packed* rows[block_rows];
  for (int64_t i = 0; x.k == 0 && i < x.m; ++i) {
    for (int64_t j = 0; j < x.n; ++j) x.c[i * x.c_stride + j] = 0;
  }

  for (int64_t i0 = 0; i0 < x.m; i0 += block_rows) {
    const int64_t m = part_size(i0, x.m, block_rows);
    const int64_t row_parts = (m + Lanes::packed_rows - 1) / Lanes::packed_rows;
    const Element* b = reinterpret_cast<const Element*>(x.b);
    for (int64_t k0 = 0; k0 < x.k; k0 += block_k) {
      const int64_t k = part_size(k0, x.k, block_k), steps = (k + Lanes::group - 1) / Lanes::group;
      const int64_t packed_steps = (part_size(k0, x.packed_k, block_k) + Lanes::group - 1) / Lanes::group;
      broadcast_rows<Lanes>(x.a, i0, m, k0, k, static_cast<Packed*>(x.workspace), row_stride, rows);
      for_column_groups<Lanes>(x.n, [&](int64_t first, int64_t vectors) {
        const int64_t stretch = packed_steps * vectors * width;
        const int64_t lines = stretch * static_cast<int64_t>(sizeof(Element)) / 64;
        const bool last = k0 + k >= x.k && (first + vectors) * width >= x.n && i0 + m >= x.m;
        const void* const next = last && x.next ? static_cast<const void*>(x.next) : b + stretch;
        PackedBTile<Lanes, Stored> tile{
            .steps = steps,
            .a = nullptr,
            .b = b,
            .c = nullptr,
            .c_stride = x.c_stride,
            .last_columns = part_size(first * width, x.n, vectors * width) - (vectors - 1) * width,
            .accumulate = k0 > 0,
            .ahead = static_cast<const char*>(next),
            .ahead_lines = lines / row_parts,
            .ahead_per_step = 0};
        tile.ahead_per_step = (tile.ahead_lines + steps - 1) / steps;
        if (tile.ahead_per_step > 3) tile.ahead_per_step = 3;
        for_balanced_parts<Lanes>(m, Lanes::packed_rows, [&](int64_t row, int64_t tile_rows) {
          tile.a = rows + row;
          tile.c = x.c + (i0 + row) * x.c_stride + first * width;
          multiply_outer<Lanes, PackedBTile<Lanes, Stored>, Lanes::packed_rows, Lanes::packed_vectors>(tile_rows,
                                                                                                       vectors, tile);
          tile.ahead += tile.ahead_lines * 64;
        });
        b += stretch;
      });
    }
  }
}

}  // namespace anabranch::detail

namespace anabranch {

/// The definitions of packed_gemm_kernels_for, for the translation unit of one instruction set.
#define ANABRANCH_DEFINE_PACKED_GEMM(isa, Lanes, T, Stored)                             \
  template <>                                                                           \
  PackedGemmKernels<T, Stored> packed_gemm_kernels_for<isa, T, Stored>() {              \
    return {detail::pack_matrix<Lanes, Stored>, detail::packed_gemm<Lanes, T, Stored>}; \
  }
#define ANABRANCH_DEFINE_PACKED_GEMMS(isa, FloatLanes, DoubleLanes) \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, float, float)       \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, DoubleLanes, double, double)    \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, bfloat16, bfloat16) \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, half, half)         \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, float, int8_t)      \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, bfloat16, int8_t)   \
  ANABRANCH_DEFINE_PACKED_GEMM(isa, FloatLanes, half, int8_t)

}  // namespace anabranch
