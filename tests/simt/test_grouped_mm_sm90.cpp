// The Hopper grouped products against their definitions: either layout of w, empty groups, rows past the last offset.
#include <vector>

#include "anabranch/experts/grouped_mm_sm90.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
void expect_close(Guarded<T>& values, Guarded<T>& expected, const char* what) {
  double scale = 1;
  for (int64_t i = 0; i < expected.size(); ++i)
    scale = std::max(scale, std::abs(double(static_cast<float>(expected.data()[i]))));
  const double tolerance = scale * (std::is_same_v<T, bfloat16> ? 0x1p-7 : 0x1p-10);
  for (int64_t i = 0; i < values.size(); ++i) {
    const double error = static_cast<float>(values.data()[i]) - static_cast<float>(expected.data()[i]);
    expect(std::abs(error) <= tolerance, what);
  }
}

template <class T>
void check(const std::vector<int32_t>& ends, int64_t num_rows, int64_t k, int64_t n, bool n_major, bool biased) {
  std::mt19937 random(3);
  const auto groups = static_cast<int64_t>(ends.size()) - 1;
  Guarded<int32_t> offsets(ends), scratch(row_tiles_scratch(groups));
  std::vector<T> x_values = random_values<T>(num_rows * (k + 8), random);
  std::fill(x_values.begin() + ends.back() * (k + 8), x_values.end(), T(NAN));
  Guarded<T> x(x_values), w(random_values<T>(groups * k * n, random)), bias(random_values<T>(groups * n, random));
  Guarded<T> out(num_rows * n), expected(num_rows * n);
  GroupedMm<T> problem{{x.data(), k + 8, 1},
                       n_major ? StridedMatrix<T>{w.data(), n, 1} : StridedMatrix<T>{w.data(), 1, k},
                       k * n,
                       biased ? bias.data() : nullptr,
                       offsets.data(),
                       groups,
                       num_rows,
                       k,
                       n,
                       out.data()};
  expect(grouped_mm_sm90_takes(problem), "a problem that the kernels take");
  grouped_mm_sm90(problem, scratch.data(), 3, nullptr);
  problem.out = expected.data();
  grouped_mm_reference(problem);
  expect_close(out, expected, "grouped_mm");

  std::vector<T> dense = random_values<T>(num_rows * k, random), dy_values = random_values<T>(num_rows * n, random);
  std::fill(dense.begin() + ends.back() * k, dense.end(), T(NAN));
  std::fill(dy_values.begin() + ends.back() * n, dy_values.end(), T(NAN));
  Guarded<T> rows(dense), dy(dy_values), dw(groups * k * n), expected_dw(groups * k * n);
  GroupedMmDw<T> gradient{{rows.data(), k, 1}, {dy.data(), n, 1}, offsets.data(), groups, k, n, dw.data()};
  expect(grouped_mm_dw_sm90_takes(gradient), "a gradient that the kernels take");
  grouped_mm_dw_sm90(gradient, num_rows, 3, nullptr);
  gradient.dw = expected_dw.data();
  grouped_mm_dw_reference(gradient);
  expect_close(dw, expected_dw, "grouped_mm_dw, zero for a group without rows");
}

void check_takes() {
  alignas(16) static half data[64];
  const GroupedMm<half> good{{data, 8, 1}, {data, 8, 1}, 64, nullptr, nullptr, 1, 8, 8, 8, data};
  const GroupedMmDw<half> gradient{{data, 8, 1}, {data, 8, 1}, nullptr, 1, 8, 8, data};
  const auto refuses = [&](auto&& change) {
    GroupedMm<half> changed = good;
    change(changed);
    return !grouped_mm_sm90_takes(changed);
  };
  expect(grouped_mm_sm90_takes(good) && grouped_mm_dw_sm90_takes(gradient), "contiguous matrices");
  expect(refuses([](auto& p) { p.x.column_stride = 2; }) && refuses([](auto& p) { p.x.row_stride = 0; }) &&
             refuses([](auto& p) { p.k = 4; }) && refuses([](auto& p) { p.w.column_stride = p.w.row_stride = 8; }) &&
             refuses([](auto& p) { p.out += 1; }) && refuses([](auto& p) { p.num_rows = 0; }),
         "what 16-byte copies cannot reach");
  GroupedMmDw<half> strided = gradient;
  strided.dy.row_stride = 16;
  expect(!grouped_mm_dw_sm90_takes(strided), "rows that are not one block");
}

template <class T>
void check_dtype() {
  for (const bool n_major : {false, true}) {
    check<T>({0, 5, 5, 40, 41}, 50, 72, 264, n_major, true);
    check<T>({0, 0, 150}, 155, 136, 40, n_major, false);
  }
  check<T>({0, 0, 0}, 4, 8, 8, true, true);
}

}  // namespace

int main() {
  check_takes();
  check_dtype<half>();
  for_each_schedule([] { check_dtype<bfloat16>(); });
  std::puts("grouped_mm_sm90: ok");
}
