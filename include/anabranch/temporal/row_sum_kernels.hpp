// The loops behind row_sums_cpu.hpp; csrc/temporal/row_sums_<isa>.cpp compiles them once with its flags.
//
// Four vectors of a row's columns stay in registers while the rows go by, the row some ids ahead is fetched meanwhile.
// Bytes: count * width * sizeof(T); floor: those over the bandwidth. Everything is a template on the instruction set or
// always inlined.
#pragma once

#include "anabranch/core/row_lanes_cpu.hpp"
#include "anabranch/temporal/row_sums_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct RowSumLoops {
  using Lane = RowLanes<isa, T>;
  using Sum = typename Lane::Sum;
  using Vector = typename Lane::Vector;
  static constexpr int64_t width_of_vector = Lane::width, ahead = 4;

  template <int n, bool weighted>
  [[gnu::always_inline]] static void sum_columns(const T* x, int64_t width, const int64_t* ids, const T* weights,
                                                 int64_t count, int64_t column, int64_t columns, T* out) {
    Vector sums[n] = {};
    for (int64_t k = 0; k < count; ++k) {
      if (k + ahead < count) __builtin_prefetch(x + ids[k + ahead] * width + column);
      const T* row = x + ids[k] * width + column;
      for (int i = 0; i < n; ++i) {
        const Vector value = n > 1 ? Lane::load(row + i * width_of_vector) : Lane::load(row, columns);
        if constexpr (weighted) {
          sums[i] += static_cast<Sum>(weights[k]) * value;
        } else {
          sums[i] += value;
        }
      }
    }
    for (int i = 0; i < n; ++i) {
      Lane::store(out + column + i * width_of_vector, sums[i], n > 1 ? width_of_vector : columns);
    }
  }

  template <bool weighted>
  [[gnu::always_inline]] static void sum_rows(const T* x, int64_t width, const int64_t* ids, const T* weights,
                                              int64_t count, T* out) {
    int64_t column = 0;
    for (; column + 4 * width_of_vector <= width; column += 4 * width_of_vector) {
      sum_columns<4, weighted>(x, width, ids, weights, count, column, 0, out);
    }
    for (; column < width; column += width_of_vector) {
      sum_columns<1, weighted>(x, width, ids, weights, count, column, width - column, out);
    }
  }

  static void sum(const T* x, int64_t width, const int64_t* ids, int64_t count, T* out) {
    sum_rows<false>(x, width, ids, nullptr, count, out);
  }
  static void weighted_sum(const T* x, int64_t width, const int64_t* ids, const T* weights, int64_t count, T* out) {
    sum_rows<true>(x, width, ids, weights, count, out);
  }

  template <bool weighted>
  [[gnu::always_inline]] static void add_row(const T* row, int64_t width, Sum weight, Sum* sums) {
    int64_t column = 0;
    for (; column + width_of_vector <= width; column += width_of_vector) {
      Vector sum;
      __builtin_memcpy(&sum, sums + column, sizeof(sum));
      if constexpr (weighted) {
        sum += weight * Lane::load(row + column);
      } else {
        sum += Lane::load(row + column);
      }
      __builtin_memcpy(sums + column, &sum, sizeof(sum));
    }
    for (; column < width; ++column) {
      const Sum value = static_cast<Sum>(row[column]);
      sums[column] += weighted ? weight * value : value;
    }
  }

  static void add(const T* row, int64_t width, Sum* sums) { add_row<false>(row, width, Sum(1), sums); }
  static void add_weighted(const T* row, int64_t width, T weight, Sum* sums) {
    add_row<true>(row, width, static_cast<Sum>(weight), sums);
  }

  static void dots(const T* row, const T* x, int64_t width, const int64_t* ids, int64_t count, T* out) {
    for (int64_t k = 0; k < count; ++k) {
      if (k + ahead < count) __builtin_prefetch(x + ids[k + ahead] * width);
      const T* other = x + ids[k] * width;
      Vector sum = {};
      for (int64_t column = 0; column < width; column += width_of_vector) {
        sum += Lane::load(row + column, width - column) * Lane::load(other + column, width - column);
      }
      out[k] = T(Lane::reduce(sum));
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
RowSumKernels<T> row_sum_kernels_for() {
  using Loops = detail::RowSumLoops<isa, T>;
  return {Loops::sum, Loops::weighted_sum, Loops::add, Loops::add_weighted, Loops::dots};
}

}  // namespace anabranch
