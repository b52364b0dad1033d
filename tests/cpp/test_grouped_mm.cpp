// grouped_mm and its weight gradient on the CPU: against the definitions in double for every dtype, layout and
// instruction set, and the same bits on several threads as on one.
#include "anabranch/experts/grouped_mm_cpu.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

struct Shape {
  int64_t rows, k, n;  // some rows belong to no group
  std::vector<int32_t> offsets;
};

template <class T>
StridedMatrix<T> matrix(const std::vector<T>& values, int64_t rows, int64_t columns, bool transposed) {
  return {values.data(), transposed ? 1 : columns, transposed ? rows : 1};
}

template <class T>
void check_all(const Shape& s, bool transposed, bool biased) {
  context = std::string("grouped_mm, ") + type_name<T>() + ", " + std::to_string(s.rows) + " rows";
  const int64_t groups = static_cast<int64_t>(s.offsets.size()) - 1;
  const auto x = random_values<T>(s.rows * s.k), dy = random_values<T>(s.rows * s.n);
  const auto w = random_values<T>(groups * s.k * s.n), bias = random_values<T>(groups * s.n);
  const auto product = [&]<class Value>(const std::vector<Value>& left, const std::vector<Value>& right,
                                        const std::vector<Value>& added, auto kernel) {
    std::vector<std::vector<Value>> results(1, std::vector<Value>(s.rows * s.n, Value(0.5f)));
    kernel(GroupedMm<Value>{matrix(left, s.rows, s.k, transposed), matrix(right, s.k, s.n, !transposed), s.k * s.n,
                            biased ? added.data() : nullptr, s.offsets.data(), groups, s.rows, s.k, s.n,
                            results.front().data()});
    return results;
  };
  const auto gradient = [&]<class Value>(const std::vector<Value>& left, const std::vector<Value>& right, auto kernel) {
    std::vector<std::vector<Value>> results(1, std::vector<Value>(groups * s.k * s.n, Value(0.5f)));
    kernel(GroupedMmDw<Value>{matrix(left, s.rows, s.k, transposed), matrix(right, s.rows, s.n, !transposed),
                              s.offsets.data(), groups, s.k, s.n, results.front().data()});
    return results;
  };
  const auto wide_x = converted<double>(x), wide_dy = converted<double>(dy);
  const auto wanted = product(wide_x, converted<double>(w), converted<double>(bias), grouped_mm_reference<double>);
  const auto wanted_dw = gradient(wide_x, wide_dy, grouped_mm_dw_reference<double>);
  const double units = sizeof(T) == 2 ? 1 : 16;
  on_every_cpu_isa([&] {
    on_several_threads([&] { return product(x, w, bias, grouped_mm_cpu<T>); },
                       [&](const auto& found) { expect_close<T>(found[0], wanted[0], units, "out"); });
    on_several_threads([&] { return gradient(x, dy, grouped_mm_dw_cpu<T>); },
                       [&](const auto& found) { expect_close<T>(found[0], wanted_dw[0], units, "dw"); });
  });
}

}  // namespace

int main() {
  const Shape shapes[] = {{330, 130, 210, {0, 0, 300, 301, 320}}, {40, 33, 17, {0, 7, 40}}, {1, 1, 1, {0, 1}}};
  for (const Shape& shape : shapes) {
    for (const bool transposed : {false, true}) {
      for (const bool biased : {false, true}) {
        check_all<float>(shape, transposed, biased);
        check_all<double>(shape, transposed, biased);
        check_all<bfloat16>(shape, transposed, biased);
        check_all<half>(shape, transposed, biased);
      }
    }
  }
  std::printf("grouped_mm: ok\n");
}
