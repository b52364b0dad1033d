// The expert FFN's forward on one thread at Qwen3-30B-A3B's sizes, a quarter of its experts: 32 experts of 768 features
// behind 2048, each row to 8 of them. One row reads the weights of its 8 experts from memory, 512 rows are bound by
// products. Packed weights are what inference uses: as they are, and in int8.
#include "../core/limits.hpp"
#include "../plan/plans.hpp"
#include "anabranch/experts/expert_ffn_packed_cpu.hpp"

namespace {

using namespace anabranch;
using bench::numbers, bench::report, bench::TopKPlan;

constexpr int64_t experts = 32, width = 2048, inner = 768, top_k = 8;

template <class T>
struct Problem {
  explicit Problem(int64_t rows)
      : plan(rows, experts, top_k),
        x(numbers<T>(rows * width)),
        weights(plan.entries(), accumulate_t<T>(0.125)),
        y(rows * width) {
    bench::machine();
  }
  ExpertFfn<T> ffn(const T* gate_up, const T* down) const {
    return {.x = x.data(),
            .gate_up = {gate_up, 2 * inner * width, width, 1, nullptr},
            .down = {down, width * inner, inner, 1, nullptr},
            .group_offsets = plan.offsets.data(),
            .item_ids = plan.items.data(),
            .weights = weights.data(),
            .item_offsets = plan.item_offsets.data(),
            .entry_ids = plan.entry_ids.data(),
            .widths = nullptr,
            .num_items = plan.rows,
            .num_experts = experts,
            .num_zero = 0,
            .num_identity = 0,
            .in_features = width,
            .intermediate = inner,
            .out_features = width,
            .activation = Activation::silu,
            .gated = true,
            .interleaved = false};
  }
  /// With weights of so many bytes each.
  void report_to(benchmark::State& state, std::size_t weight_bytes) const {
    const double matrices = 3.0 * width * inner;
    report<T>(state, 2 * matrices * static_cast<double>(plan.entries()),
              matrices * static_cast<double>(plan.touched() * weight_bytes) +
                  2.0 * static_cast<double>(y.size() * sizeof(T)));
  }

  TopKPlan plan;
  std::vector<T> x;
  std::vector<accumulate_t<T>> weights;
  std::vector<T> y;
};

template <class T>
void expert_ffn(benchmark::State& state) {
  Problem<T> problem(state.range(0));
  static const auto gate_up = numbers<T>(experts * 2 * inner * width, 0.02);
  static const auto down = numbers<T>(experts * width * inner, 0.03);
  const ExpertFfn<T> ffn = problem.ffn(gate_up.data(), down.data());
  for (auto _ : state) expert_ffn_cpu(ffn, problem.y.data(), static_cast<T*>(nullptr));
  problem.report_to(state, sizeof(T));
}
BENCHMARK(expert_ffn<bfloat16>)->ArgNames({"rows"})->Args({1})->Args({32})->Args({512})->UseRealTime();
BENCHMARK(expert_ffn<float>)->ArgNames({"rows"})->Args({1})->Args({32})->Args({512})->UseRealTime();

template <class T, class Stored>
std::vector<Stored> packed(const PackedLinearShape& shape, double scale) {
  const int64_t rows = shape.parts * shape.out_features;
  const auto plain = numbers<Stored>(experts * rows * shape.in_features, scale);
  std::vector<Stored> to(experts * shape.expert_elements());
  pack_linear_cpu<T, Stored>(
      shape, ExpertLinear<const Stored>{plain.data(), rows * shape.in_features, shape.in_features, 1, nullptr}, experts,
      [&](int64_t part, int64_t j) { return part * shape.out_features + j; }, cpu_isa(), to.data());
  return to;
}

template <class T, class Stored>
void expert_ffn_packed(benchmark::State& state) {
  constexpr bool integers = sizeof(Stored) == 1;
  Problem<T> problem(state.range(0));
  static const auto gate_up = packed<T, Stored>(packed_gate_up_shape(2, inner, width), integers ? 40 : 0.02);
  static const auto down = packed<T, Stored>(packed_down_shape(width, inner), integers ? 40 : 0.03);
  static const std::vector<accumulate_t<T>> scales(experts * 2 * width, accumulate_t<T>(5e-4));
  const auto* const scale = integers ? scales.data() : nullptr;
  const ExpertFfn<T> ffn = problem.ffn(nullptr, nullptr);
  const PackedExperts<T, Stored> weights{gate_up.data(), down.data(), scale, scale, cpu_isa()};
  for (auto _ : state) expert_ffn_packed_cpu(ffn, weights, problem.y.data());
  problem.report_to(state, sizeof(Stored));
}
BENCHMARK(expert_ffn_packed<bfloat16, bfloat16>)->ArgNames({"rows"})->Args({1})->Args({32})->Args({512})->UseRealTime();
BENCHMARK(expert_ffn_packed<bfloat16, int8_t>)->ArgNames({"rows"})->Args({1})->Args({32})->Args({512})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
