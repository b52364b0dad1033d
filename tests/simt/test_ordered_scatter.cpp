// Ordered scatters: the kernels on the harness, and the CPU's on one and three workers, bit for bit against the
// definition; every dtype, crowded and sparse rows, more than a stretch, indices that name no row.
#include "anabranch/temporal/ordered_scatter.cuh"
#include "anabranch/temporal/ordered_scatter_cpu.hpp"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
std::vector<T> numbers(int64_t count, std::mt19937& random) {
  if constexpr (std::is_same_v<T, int64_t>) {
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = static_cast<T>(random() % 1000) - 500;
    return values;
  } else {
    return random_values<T>(count, random);
  }
}

template <class T>
void expect_same(Guarded<T>& given, Guarded<T>& expected, const char* what) {
  expect(std::memcmp(given.data(), expected.data(), expected.size() * sizeof(T)) == 0, what);
}

template <class T>
void check_add(int64_t rows, int64_t width, int64_t size, bool weighted, bool on_harness,
               int64_t stretch = ordered_scatter_stretch) {
  std::mt19937 random(static_cast<unsigned>(rows + width + size));
  std::vector<int64_t> named(static_cast<size_t>(size));
  for (int64_t& row : named) row = static_cast<int64_t>(random() % (rows + 2)) - 1;  // -1 and rows name nothing
  Guarded<int64_t> index(named);
  Guarded<T> values(numbers<T>(size * width, random)), weights(numbers<T>(weighted ? size : 0, random));
  const auto before = numbers<T>(rows * width, random);
  Guarded<T> expected(before);
  const auto problem = [&](T* table) {
    return OrderedScatterAdd<T>{table, index.data(), values.data(), weighted ? weights.data() : nullptr,
                                rows,  width,        size};
  };
  ordered_scatter_add_reference(problem(expected.data()), stretch);
  static int num_threads;
  for (num_threads = 1; num_threads <= 3; num_threads += 2) {
    parallel_backend().num_threads = [] { return num_threads; };
    Guarded<T> table(before);
    ordered_scatter_add_cpu(problem(table.data()), stretch);
    expect_same(table, expected, "CPU sums");
  }
  if (!on_harness) return;
  Guarded<T> table(before);
  ordered_scatter_add_cuda(problem(table.data()), nullptr, stretch);
  expect_same(table, expected, "sums");
}

template <class T>
void check_set(int64_t rows, int64_t width, int64_t size, int64_t stretch = ordered_scatter_stretch) {
  std::mt19937 random(static_cast<unsigned>(width));
  std::vector<int64_t> named(static_cast<size_t>(size));
  for (int64_t& row : named) row = static_cast<int64_t>(random() % (rows + 2)) - 1;
  Guarded<int64_t> index(named);
  Guarded<T> values(numbers<T>(size * width, random)), expected(rows * width), on_cpu(rows * width),
      table(rows * width);
  for (Guarded<T>* one : {&expected, &on_cpu, &table}) std::fill_n(one->data(), rows * width, T{});
  const auto problem = [&](T* to) {
    return OrderedScatter{to, index.data(), values.data(), rows, width * static_cast<int64_t>(sizeof(T)), size};
  };
  ordered_scatter_reference(problem(expected.data()));
  ordered_scatter_cpu(problem(on_cpu.data()));
  ordered_scatter_cuda(problem(table.data()), nullptr, stretch);
  expect_same(on_cpu, expected, "CPU rows");
  expect_same(table, expected, "rows");
}

/// (1 + 2^-12)^2 - 1: a fused multiply-add would keep the 2^-24 that the rounded product loses.
void check_products_are_rounded() {
  Guarded<int64_t> index(std::vector<int64_t>{1, 0, 1, 1});
  const float near_one = 1.0f + 0x1p-12f;
  Guarded<float> values(std::vector<float>{-1, near_one, near_one, 0}),
      weights(std::vector<float>{1, near_one, near_one, 1});
  for (const bool on_gpu : {false, true}) {
    Guarded<float> table(std::vector<float>{-1, 0});
    const OrderedScatterAdd<float> problem{table.data(), index.data(), values.data(), weights.data(), 2, 1, 4};
    on_gpu ? ordered_scatter_add_cuda(problem, nullptr) : ordered_scatter_add_cpu(problem);
    expect(table.values() == std::vector<float>{0x1p-11f, 0x1p-11f}, "products are rounded before they are added");
  }
}

void check_latest(int64_t num_nodes, int64_t size, bool with_ids) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::vector<int64_t> nodes, times, ids;
  for (int64_t p = 0; p < size; ++p) {
    nodes.push_back(static_cast<int64_t>(random() % (num_nodes + 1)) - 1);
    times.push_back(static_cast<int64_t>(random() % 5) - 2);
    ids.push_back(static_cast<int64_t>(random() % 4));
  }
  Guarded<int64_t> n(nodes), t(times), i(ids);
  const NodeEvents events{n.data(), t.data(), with_ids ? i.data() : nullptr, size};
  Guarded<uint8_t> expected(size), on_cpu(size), on_gpu(size);
  latest_of_node_reference(events, reinterpret_cast<bool*>(expected.data()));
  latest_of_node_cpu(events, reinterpret_cast<bool*>(on_cpu.data()));
  latest_of_node_cuda(events, reinterpret_cast<bool*>(on_gpu.data()), nullptr);
  expect_same(on_cpu, expected, "CPU latest");
  expect_same(on_gpu, expected, "latest");
}

template <class T>
void check_dtype() {
  for (const bool weighted : {false, true}) {
    check_add<T>(5, 70, 40, weighted, true);
    check_add<T>(40, 3, 70, weighted, true);
    check_add<T>(3, 300, 9, weighted, true);
    check_add<T>(4, 5, 40, weighted, true, 7);  // several launches
  }
}

}  // namespace

int main() {
#if defined(__SANITIZE_ADDRESS__)
  const int64_t longer = 17000;
#else
  const int64_t longer = 40000;
#endif
  check_add<float>(50, 2, longer, true, false);
  check_add<bfloat16>(50, 2, longer, false, false);
  check_add<float>(3000, 40, 9000, true, false);
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<double>();
    check_dtype<bfloat16>();
    check_dtype<half>();
    check_dtype<int64_t>();
    check_add<float>(4, 0, 5, false, true);
    check_add<float>(4, 8, 0, false, true);
    check_set<float>(6, 34, 50);
    check_set<float>(6, 33, 50);
    check_set<bfloat16>(6, 5, 20);
    check_set<int64_t>(6, 4, 20);
    check_set<float>(6, 34, 50, 8);  // several launches
    check_products_are_rounded();
    for (const bool with_ids : {false, true}) {
      check_latest(7, 100, with_ids);
      check_latest(60, 37, with_ids);
      check_latest(1, 0, with_ids);
    }
  });
  std::puts("ordered_scatter: ok");
}
