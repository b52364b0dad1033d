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
#include "anabranch/core/packed_gemm_pack.hpp"

namespace anabranch::detail {

template <class Lanes, class Stored>
struct PackedBTile {
  using Element = PackedElement<Lanes, Stored>;
  int64_t steps;
  const typename Lanes::Packed* const* a;  // of the rows, at step 0
  const Element* b;
  int64_t stretch;  // from a group of columns to the next one
  typename Lanes::Sum* c;
  int64_t c_stride;
  int64_t last_columns;  // of the last vector, 1 .. width
  bool accumulate;
  const char* ahead;  // what to prefetch: `ahead_lines` lines, up to 3 a step
  int64_t ahead_lines, ahead_per_step;

  template <int rows, int vectors>
  [[gnu::noinline]] static void multiply(const PackedBTile& tile) {
    multiply_groups<rows, 1, vectors>(tile);
  }

 protected:
  template <int rows, int groups, int group_vectors>
  [[gnu::always_inline]] static void multiply_groups(const PackedBTile& tile) {
    constexpr int width = Lanes::width, vectors = groups * group_vectors;
    const int64_t stretch = tile.stretch;
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
        const Element* const from = b + v / group_vectors * stretch + v % group_vectors * width;
        if constexpr (Lanes::group > 1) {
          row[v] = Lanes::load(from);
        } else {
          row[v] = Lanes::in_register(Lanes::load_input(from));
        }
      }
      b += group_vectors * width;
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

/// Two full groups of columns at once, for so few rows that the sums of one would wait for each other.
template <class Lanes, class Stored>
struct PackedBPair : PackedBTile<Lanes, Stored> {
  template <int rows, int>
  [[gnu::noinline]] static void multiply(const PackedBPair& tile) {
    PackedBTile<Lanes, Stored>::template multiply_groups<rows, 2, Lanes::packed_vectors>(tile);
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
  constexpr int pair_rows = Lanes::packed_rows / 2;
  // Wider elements keep memory busy with one group, and read best as one stream.
  constexpr bool pairs = sizeof(Stored) == 1;
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
      const int64_t all_vectors = (x.n + width - 1) / width;
      for (int64_t first = 0; first < all_vectors;) {
        const int64_t vectors = group_vectors<Lanes>(all_vectors, first), rest = all_vectors - first - vectors;
        const bool pair = pairs && m <= pair_rows && vectors == Lanes::packed_vectors && rest > 0 &&
                          group_vectors<Lanes>(all_vectors, first + vectors) == vectors;
        const int64_t columns = (pair ? 2 : 1) * vectors * width, stretch = packed_steps * vectors * width;
        const bool last = k0 + k >= x.k && first * width + columns >= x.n && i0 + m >= x.m;
        const Element* const behind = b + packed_steps * columns;
        if (!x.wants(first * width, first * width + columns)) {
          first += columns / width;
          b = behind;
          continue;
        }
        const int64_t lines = steps * columns * static_cast<int64_t>(sizeof(Element)) / 64;
        PackedBPair<Lanes, Stored> tile{
            {.steps = steps,
             .a = nullptr,
             .b = b,
             .stretch = stretch,
             .c = nullptr,
             .c_stride = x.c_stride,
             .last_columns = part_size(first * width, x.n, columns) - (columns - width),
             .accumulate = k0 > 0,
             .ahead = last && x.next ? reinterpret_cast<const char*>(x.next) : reinterpret_cast<const char*>(behind),
             .ahead_lines = lines / row_parts,
             .ahead_per_step = 0}};
        tile.ahead_per_step = (tile.ahead_lines + steps - 1) / steps;
        if (tile.ahead_per_step > 3) tile.ahead_per_step = 3;
        for_balanced_parts<Lanes>(m, Lanes::packed_rows, [&](int64_t row, int64_t tile_rows) {
          tile.a = rows + row;
          tile.c = x.c + (i0 + row) * x.c_stride + first * width;
          if (pair) {
            multiply_outer<Lanes, PackedBPair<Lanes, Stored>, pair_rows, 1>(tile_rows, 1, tile);
          } else {
            multiply_outer<Lanes, PackedBTile<Lanes, Stored>, Lanes::packed_rows, Lanes::packed_vectors>(tile_rows,
                                                                                                         vectors, tile);
          }
          tile.ahead += tile.ahead_lines * 64;
        });
        first += columns / width;
        b = behind;
      }
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
