// The plan room on one thread, beside the bytes that each function must move: rows to 8 of 64 groups, 1024 features.
#include "../core/limits.hpp"
#include "anabranch/plan/reduce_cpu.hpp"
#include "plans.hpp"

namespace {

using namespace anabranch;
using bench::numbers, bench::report, bench::TopKPlan;

constexpr int64_t width = 1024;

/// Reads the choices, writes item and source of each entry.
void build(benchmark::State& state) {
  bench::machine();
  TopKPlan plan(state.range(0), 64, 8);
  for (auto _ : state) plan.build();
  report<float>(state, 0, 3.0 * 4 * static_cast<double>(plan.entries()));
}
BENCHMARK(build)->ArgNames({"rows"})->Args({1024})->Args({65536})->UseRealTime();

/// Reads the items, writes group and entry of each.
void transpose(benchmark::State& state) {
  bench::machine();
  TopKPlan plan(state.range(0), 64, 8);
  for (auto _ : state) plan.transpose();
  report<float>(state, 0, 3.0 * 4 * static_cast<double>(plan.entries()));
}
BENCHMARK(transpose)->ArgNames({"rows"})->Args({1024})->Args({65536})->UseRealTime();

/// Reads a row and writes one for every entry.
template <class T>
void gather(benchmark::State& state) {
  bench::machine();
  TopKPlan plan(state.range(0), 64, 8);
  const auto x = numbers<T>(plan.rows * width);
  std::vector<T> out(plan.entries() * width);
  for (auto _ : state) {
    gather_cpu(x.data(), static_cast<const accumulate_t<T>*>(nullptr), plan.items.data(), plan.entries(),
               plan.entries(), width, out.data());
  }
  report<T>(state, 0, static_cast<double>(2 * out.size() * sizeof(T)));
}
BENCHMARK(gather<bfloat16>)->ArgNames({"rows"})->Args({1024})->Args({8192})->UseRealTime();
BENCHMARK(gather<float>)->ArgNames({"rows"})->Args({8192})->UseRealTime();

/// Reads a row for every entry, weighs and adds them up, writes one for every item.
template <class T>
void combine(benchmark::State& state) {
  bench::machine();
  TopKPlan plan(state.range(0), 64, 8);
  const auto values = numbers<T>(plan.entries() * width);
  const auto weights = numbers<accumulate_t<T>>(plan.entries());
  std::vector<T> out(plan.rows * width);
  for (auto _ : state) {
    combine_cpu(values.data(), weights.data(), plan.item_offsets.data(), plan.entry_ids.data(), plan.rows, width,
                out.data());
  }
  report<T>(state, 0, static_cast<double>((values.size() + out.size()) * sizeof(T)));
}
BENCHMARK(combine<bfloat16>)->ArgNames({"rows"})->Args({1024})->Args({8192})->UseRealTime();
BENCHMARK(combine<float>)->ArgNames({"rows"})->Args({8192})->UseRealTime();

/// Reads a row for every entry, adds up those of a group.
template <class T>
void segment_sum(benchmark::State& state) {
  bench::machine();
  const TopKPlan plan(state.range(0), 64, 8);
  const auto values = numbers<T>(plan.entries() * width);
  std::vector<T> out(plan.groups * width);
  for (auto _ : state) {
    segment_reduce_cpu(values.data(), plan.offsets.data(), plan.groups, width, Reduction::sum, out.data(), nullptr);
  }
  report<T>(state, 0, static_cast<double>((values.size() + out.size()) * sizeof(T)));
}
BENCHMARK(segment_sum<bfloat16>)->ArgNames({"rows"})->Args({8192})->UseRealTime();
BENCHMARK(segment_sum<float>)->ArgNames({"rows"})->Args({8192})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
