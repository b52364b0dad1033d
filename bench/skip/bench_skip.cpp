// Rows that skip: a gated FFN of which a share of the rows runs, and low-rank residuals, on one thread. A row that
// skips must cost no more than a copy.
#include "../core/limits.hpp"
#include "anabranch/skip/gated_ffn_cpu.hpp"
#include "anabranch/skip/lowrank_residual_cpu.hpp"

namespace {

using namespace anabranch;
using bench::numbers, bench::report;

constexpr int64_t width = 1024;

/// 1024 rows, of which `per_cent` run at full width, those chosen at random.
template <class T>
void gated_ffn(benchmark::State& state) {
  constexpr int64_t rows = 1024, inner = 2816;
  bench::machine();
  const auto x = numbers<T>(rows * width), norm = numbers<T>(width);
  const auto gate_up = numbers<T>(2 * inner * width, 0.03), down = numbers<T>(width * inner, 0.02);
  std::mt19937 random(1);
  std::vector<uint8_t> runs(rows);
  int64_t running = 0;
  for (uint8_t& run : runs) running += run = static_cast<int64_t>(random() % 100) < state.range(0);
  GatedFfn<T> problem{};
  problem.x = x.data();
  problem.num_rows = rows, problem.features = width;
  problem.widths = {2, {0, static_cast<int32_t>(inner)}, runs.data(), 1};
  problem.norm = {NormKind::rms, norm.data(), nullptr, 1e-6};
  problem.ffn = {{gate_up.data(), 0, width, 1, nullptr},
                 {down.data(), 0, inner, 1, nullptr},
                 inner,
                 Activation::silu,
                 true,
                 true,
                 accumulate_t<T>(1)};
  problem.running_add_x = problem.skipped_add_x = true;
  std::vector<T> y(rows * width);
  std::vector<int32_t> offsets(problem.widths.num_groups() + 2), item_ids(rows);
  const RowGroups groups{offsets.data(), item_ids.data()};
  for (auto _ : state) {
    group_rows_cpu(problem, groups);
    gated_ffn_cpu(problem, groups, detail::strided_products, y.data(), static_cast<accumulate_t<T>*>(nullptr),
                  static_cast<T*>(nullptr), static_cast<T*>(nullptr));
  }
  const double matrices = running ? 3.0 * inner * width : 0;
  report<T>(state, 2 * matrices * static_cast<double>(running), (matrices + 2.0 * rows * width) * sizeof(T));
}
BENCHMARK(gated_ffn<bfloat16>)->ArgNames({"per_cent"})->Args({0})->Args({25})->Args({50})->Args({100})->UseRealTime();
BENCHMARK(gated_ffn<float>)->ArgNames({"per_cent"})->Args({0})->Args({50})->Args({100})->UseRealTime();

/// 32 layers at once, each with its own matrices of rank 16.
template <class T>
void lowrank_residual(benchmark::State& state) {
  constexpr int64_t layers = 32, rank = 16;
  const int64_t rows = state.range(0);
  bench::machine();
  const auto x = numbers<T>(layers * rows * width), norm = numbers<T>(width);
  const auto to_rank = numbers<T>(layers * rank * width, 0.03), back = numbers<T>(layers * width * rank, 0.2);
  LowRankResidual<T> problem{x.data(), layers, rows, width, {NormKind::rms, norm.data(), nullptr, 1e-6}, {}, true};
  problem.ffn = {{to_rank.data(), rank * width, width, 1, nullptr},
                 {back.data(), width * rank, rank, 1, nullptr},
                 rank,
                 Activation::silu,
                 false,
                 true,
                 accumulate_t<T>(1)};
  std::vector<T> y(x.size());
  for (auto _ : state) lowrank_residual_cpu(problem, y.data(), static_cast<T*>(nullptr));
  report<T>(state, 4.0 * static_cast<double>(layers * rows * width * rank),
            static_cast<double>((x.size() + y.size() + to_rank.size() + back.size()) * sizeof(T)));
}
BENCHMARK(lowrank_residual<bfloat16>)->ArgNames({"rows"})->Args({1})->Args({64})->Args({1024})->UseRealTime();
BENCHMARK(lowrank_residual<float>)->ArgNames({"rows"})->Args({1})->Args({64})->Args({1024})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
