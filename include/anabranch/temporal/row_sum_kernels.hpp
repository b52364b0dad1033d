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
  static constexpr int64_t width_of_vector = Lane::width;

  template <int n>
  [[gnu::always_inline]] static void sum_columns(const T* x, int64_t width, const int64_t* ids, int64_t count,
                                                 int64_t column, int64_t columns, T* out) {
    constexpr int64_t ahead = 4;
    Vector sums[n] = {};
    for (int64_t k = 0; k < count; ++k) {
      if (k + ahead < count) __builtin_prefetch(x + ids[k + ahead] * width + column);
      const T* row = x + ids[k] * width + column;
      if constexpr (n > 1) {
        for (int i = 0; i < n; ++i) sums[i] += Lane::load(row + i * width_of_vector);
      } else {
        sums[0] += Lane::load(row, columns);
      }
    }
    if constexpr (n > 1) {
      for (int i = 0; i < n; ++i) Lane::store(out + column + i * width_of_vector, sums[i]);
    } else {
      Lane::store(out + column, sums[0], columns);
    }
  }

  static void sum(const T* x, int64_t width, const int64_t* ids, int64_t count, T* out) {
    int64_t column = 0;
    for (; column + 4 * width_of_vector <= width; column += 4 * width_of_vector) {
      sum_columns<4>(x, width, ids, count, column, 0, out);
    }
    for (; column < width; column += width_of_vector) {
      sum_columns<1>(x, width, ids, count, column, width - column, out);
    }
  }

  static void add(const T* row, int64_t width, Sum* sums) {
    int64_t column = 0;
    for (; column + width_of_vector <= width; column += width_of_vector) {
      Vector sum;
      __builtin_memcpy(&sum, sums + column, sizeof(sum));
      sum += Lane::load(row + column);
      __builtin_memcpy(sums + column, &sum, sizeof(sum));
    }
    for (; column < width; ++column) sums[column] += static_cast<Sum>(row[column]);
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
RowSumKernels<T> row_sum_kernels_for() {
  using Loops = detail::RowSumLoops<isa, T>;
  return {Loops::sum, Loops::add};
}

}  // namespace anabranch
