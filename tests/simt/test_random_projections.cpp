// Random projections: the kernels on the harness, and the CPU's on one and three workers, bit for bit against the
// definition; every dtype, self-loops, crowded nodes, ids out of range, times before and after a node's last.
#include "anabranch/temporal/random_projections.cuh"
#include "anabranch/temporal/random_projections_cpu.hpp"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
void expect_same(Guarded<T>& given, Guarded<T>& expected, const char* what) {
  expect(std::memcmp(given.data(), expected.data(), expected.size() * sizeof(T)) == 0, what);
}

template <class T>
void check_update(int64_t num_nodes, int64_t levels, int64_t dim, int64_t events) {
  std::mt19937 random(static_cast<unsigned>(num_nodes + dim));
  const auto vector = [&](int64_t size, int64_t low, int64_t high) {
    std::vector<int64_t> values;
    for (int64_t i = 0; i < size; ++i) values.push_back(low + static_cast<int64_t>(random() % (high - low)));
    return values;
  };
  Guarded<int64_t> src(vector(events, -1, num_nodes + 1)), dst(vector(events, 0, num_nodes));
  Guarded<int64_t> time(vector(events, -40, 1000)), now(std::vector<int64_t>{1000});
  const auto table = random_values<T>(num_nodes * levels * dim, random);
  const auto last_time = vector(num_nodes, -100, 1100);
  const auto run = [&](Guarded<T>& rows, Guarded<int64_t>& last, auto&& f) {
    f(RandomProjections<T>{rows.data(), last.data(), now.data(), src.data(), dst.data(), time.data(), 1e-3, num_nodes,
                           levels, dim, events});
  };
  Guarded<T> expected(table);
  Guarded<int64_t> expected_last(last_time);
  run(expected, expected_last, random_projections_update_reference<T>);
  const auto check = [&](auto&& f, const char* what) {
    Guarded<T> rows(table);
    Guarded<int64_t> last(last_time);
    run(rows, last, f);
    expect_same(rows, expected, what);
    expect_same(last, expected_last, what);
  };
  static int num_threads;
  for (num_threads = 1; num_threads <= 3; num_threads += 2) {
    parallel_backend().num_threads = [] { return num_threads; };
    check(random_projections_update_cpu<T>, "CPU");
  }
  check([](const RandomProjections<T>& problem) { random_projections_update_cuda<T>(problem, nullptr); }, "kernel");
}

template <class T>
void check_dtype() {
  check_update<T>(5, 3, 10, 23);
  check_update<T>(40, 4, 70, 20);
  check_update<T>(3, 1, 4, 5);
  check_update<T>(3, 2, 4, 0);
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<double>();
    check_dtype<bfloat16>();
    check_dtype<half>();
  });
  check_update<float>(300, 3, 300, 900);
  std::puts("random_projections: ok");
}
