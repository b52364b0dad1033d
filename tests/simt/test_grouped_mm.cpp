// The tile schedule and the grouped products on the harness: against their definitions, for every dtype, with strides
// of every kind, empty groups, rows past the last offset (NaN, never read), and offsets out of range.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "anabranch/experts/grouped_mm.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

using Offsets = std::vector<int32_t>;

/// Every row that the offsets (and the tail) name is in exactly one tile of its group, and tiles come in order.
void check_schedule(const Offsets& values, int64_t num_rows, int tile_rows, bool with_tail) {
  const int64_t num_groups = static_cast<int64_t>(values.size()) - 1;
  Guarded<int32_t> offsets(values), scratch(row_tiles_scratch(num_groups));
  const auto tiles =
      row_tiles_cuda(offsets.data(), num_groups, num_rows, tile_rows, with_tail, scratch.data(), nullptr);
  int64_t index = 0;
  for (int64_t g = 0; g < num_groups + with_tail; ++g) {
    const int64_t end = g < num_groups ? values[g + 1] : num_rows;
    for (int64_t begin = values[g]; begin < end; begin += tile_rows, ++index) {
      const auto tile = tiles.tile(index);
      expect(tile.group == g && tile.begin == begin && tile.end == std::min(end, begin + tile_rows), "a tile of rows");
    }
  }
  expect(index <= tiles.max_tiles, "tiles that a capacity can give");
  expect(tiles.tile(index).group == -1 && tiles.tile(tiles.max_tiles).group == -1, "past the last tile");
}

void check_bad_offsets() {
  for (const Offsets& values :
       {Offsets{-5, 90, 3, 1000, 7}, Offsets{40, 0, 40, 0, 40}, Offsets{1000, -1, -1, -1, 1000}}) {
    Guarded<int32_t> offsets(values), scratch(row_tiles_scratch(4));
    const auto tiles = row_tiles_cuda(offsets.data(), 4, 40, 16, true, scratch.data(), nullptr);
    for (int64_t index = 0; index < tiles.max_tiles; ++index) {
      const auto tile = tiles.tile(index);
      expect(tile.group < 0 || (tile.begin >= 0 && tile.begin <= tile.end && tile.end <= 40), "rows in range");
    }
    Guarded<float> x(std::vector<float>(40 * 3, 1.0f)), w(std::vector<float>(4 * 3 * 2, 1.0f)), out(40 * 2),
        dw(4 * 3 * 2);
    Guarded<float> dy(std::vector<float>(40 * 2, 1.0f));
    grouped_mm_cuda(
        GroupedMm<float>{{x.data(), 3, 1}, {w.data(), 2, 1}, 6, nullptr, offsets.data(), 4, 40, 3, 2, out.data()},
        scratch.data(), nullptr);
    grouped_mm_dw_cuda(GroupedMmDw<float>{{x.data(), 3, 1}, {dy.data(), 2, 1}, offsets.data(), 4, 3, 2, dw.data()}, 40,
                       nullptr);
  }
}

/// How a matrix lies in memory: row_stride and column_stride for rows x columns, both with a gap if padded.
struct Layout {
  bool turned, padded;
  int64_t line(int64_t rows, int64_t columns) const { return (turned ? rows : columns) + 3 * padded; }
  int64_t size(int64_t rows, int64_t columns) const { return line(rows, columns) * (turned ? columns : rows); }
  template <class T>
  StridedMatrix<T> matrix(const T* data, int64_t rows, int64_t columns) const {
    return turned ? StridedMatrix<T>{data, 1, line(rows, columns)} : StridedMatrix<T>{data, line(rows, columns), 1};
  }
};

template <class T>
void check_products(const Offsets& offset_values, int64_t num_rows, int64_t k, int64_t n, Layout x_layout,
                    Layout w_layout, bool biased) {
  std::mt19937 random(static_cast<unsigned>(k * 97 + n));
  const int64_t groups = static_cast<int64_t>(offset_values.size()) - 1, routed = offset_values.back();
  // Scaled so that sums stay near 1: spacing_error then measures rounding alone.
  const auto scaled = [&](int64_t count, int64_t terms) {
    std::vector<T> values = random_values<T>(count, random);
    for (T& value : values) {
      value = T(static_cast<accumulate_t<T>>(value) / std::sqrt(static_cast<float>(std::max<int64_t>(1, terms))));
    }
    return values;
  };
  const auto with_nan_tail = [&](std::vector<T> values, Layout layout, int64_t columns) {
    const auto matrix = layout.matrix(values.data(), num_rows, columns);
    for (int64_t s = routed; s < num_rows; ++s)
      for (int64_t c = 0; c < columns; ++c) const_cast<T&>(matrix(s, c)) = T(NAN);
    return values;
  };
  Guarded<int32_t> offsets(offset_values), scratch(row_tiles_scratch(groups));
  Guarded<T> x(with_nan_tail(scaled(x_layout.size(num_rows, k), k), x_layout, k), 1);
  Guarded<T> w(scaled(groups * w_layout.size(k, n), 1)), bias(scaled(groups * n, 1)), out(num_rows * n, 1);
  GroupedMm<T> problem{x_layout.matrix<T>(x.data(), num_rows, k),
                       w_layout.matrix<T>(w.data(), k, n),
                       w_layout.size(k, n),
                       biased ? bias.data() : nullptr,
                       offsets.data(),
                       groups,
                       num_rows,
                       k,
                       n,
                       out.data()};
  grouped_mm_cuda(problem, scratch.data(), nullptr);
  std::vector<T> expected(num_rows * n);
  problem.out = expected.data();
  grouped_mm_reference(problem);
  const double tolerance = sizeof(T) < 4 ? 1.0 : 8.0 + static_cast<double>(k) / 4;
  expect(spacing_error(out.values(), expected) <= tolerance, "grouped_mm");
  for (int64_t i = routed * n; i < num_rows * n; ++i) {
    expect(static_cast<accumulate_t<T>>(out.data()[i]) == 0, "rows of no group are zero");
  }

  Guarded<T> dy(with_nan_tail(scaled(w_layout.size(num_rows, n), 1), w_layout, n)), dw(groups * k * n);
  GroupedMmDw<T> gradient{problem.x, w_layout.matrix<T>(dy.data(), num_rows, n), offsets.data(), groups, k, n,
                          dw.data()};
  grouped_mm_dw_cuda(gradient, num_rows, nullptr);
  expected.resize(groups * k * n);
  gradient.dw = expected.data();
  grouped_mm_dw_reference(gradient);
  expect(spacing_error(dw.values(), expected) <= (sizeof(T) < 4 ? 1.0 : 8.0 + static_cast<double>(num_rows) / 4),
         "grouped_mm_dw");
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; offset_values[g] == offset_values[g + 1] && i < k * n; ++i) {
      expect(static_cast<accumulate_t<T>>(dw.data()[g * k * n + i]) == 0, "the gradient of an empty group is zero");
    }
  }
}

template <class T>
void check_dtype() {
  constexpr Layout plain{false, false}, padded{false, true}, turned{true, false}, turned_padded{true, true};
  check_products<T>({0, 0, 70, 71, 71, 90}, 100, 37, 67, plain, plain, true);
  check_products<T>({0, 64, 65}, 65, 16, 64, padded, turned, false);
  check_products<T>({0, 5}, 9, 33, 5, turned, turned_padded, true);
  check_products<T>({0, 3, 3, 20}, 20, 1, 1, turned_padded, padded, true);
  check_products<T>({0, 0, 0}, 7, 5, 9, plain, turned, true);  // no rows, a tail
  check_products<T>({0}, 7, 5, 9, plain, plain, false);        // no groups
  check_products<T>({0, 0}, 0, 5, 9, plain, plain, true);      // nothing at all
  check_products<T>({0, 4, 6}, 8, 0, 9, plain, plain, true);   // sums of nothing
  check_products<T>({0, 4, 6}, 8, 6, 0, plain, plain, false);
}

}  // namespace

int main() {
  for_each_schedule([] {
    for (const bool with_tail : {false, true}) {
      check_schedule({0, 3, 3, 40, 41}, 50, 16, with_tail);
      check_schedule({0}, 0, 16, with_tail);
      check_schedule({0, 0, 0}, 33, 16, with_tail);
      check_schedule({0, 128}, 128, 64, with_tail);
      Offsets many(601);
      for (size_t g = 1; g < many.size(); ++g) many[g] = many[g - 1] + static_cast<int32_t>(g % 4 * (g % 3));
      check_schedule(many, many.back() + 5, 2, with_tail);
    }
    check_bad_offsets();
    check_dtype<float>();
    check_dtype<double>();
    check_dtype<bfloat16>();
    check_dtype<half>();
  });
  std::puts("grouped_mm: ok");
}
