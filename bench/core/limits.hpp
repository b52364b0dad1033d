// What the microbenchmarks of kernels share: operands, and a kernel's time beside the machine's limit, both measured in
// one run on one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <type_traits>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/core/peak.hpp"
#include "anabranch/core/scalar.hpp"
#include "benchmark.hpp"

namespace anabranch::bench {

struct Machine {
  double flops, bf16_flops, bandwidth;  // of one thread, per second
};

/// Measured at the first call, which also sees to it that kernels run on one thread.
inline const Machine& machine() {
  static const Machine measured = [] {
    parallel_backend().num_threads = [] { return 1; };
    const Machine found{peak_flops(false, 1, 0.2), peak_flops(true, 1, 0.2),
                        read_bandwidth(std::size_t{512} << 20, 1, 5)};
    std::fprintf(stderr, "%s, one thread: %.1f GFLOP/s float32, %.1f bfloat16, %.1f GB/s read\n",
                 cpu_isa_name(cpu_isa()).data(), found.flops / 1e9, found.bf16_flops / 1e9, found.bandwidth / 1e9);
    return found;
  }();
  return measured;
}

/// Of one iteration: what it computes, and the bytes that it must move if everything is read and written once. T is the
/// type of the products. `of_limit` is the larger of the two over the machine's rate, divided by the time taken (no
/// rate, whatever unit is printed behind it); above 1 where the operands stay in a cache.
template <class T>
void report(benchmark::State& state, double flops, double bytes) {
  using Counter = benchmark::Counter;
  const double peak = std::is_same_v<T, bfloat16> ? machine().bf16_flops : machine().flops;
  const auto per_second = [](double value) { return Counter(value, Counter::kIsIterationInvariantRate); };
  if (flops > 0) state.counters["GFLOP/s"] = per_second(flops / 1e9);
  state.counters["GB/s"] = per_second(bytes / 1e9);
  state.counters["of_limit"] = per_second(std::max(flops / peak, bytes / machine().bandwidth));
}

/// Numbers of about `scale`: few distinct ones, for there may be a billion of them.
template <class T>
std::vector<T> numbers(int64_t count, double scale = 1) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  T some[4093];
  for (T& number : some) number = T(static_cast<float>(scale) * normal(random));
  std::vector<T> out(count);
  for (int64_t i = 0; i < count; ++i) out[i] = some[i % 4093];
  return out;
}

}  // namespace anabranch::bench
