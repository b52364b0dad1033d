// A mixture-of-experts FFN on the CPU: rows go to the two experts that a router likes best, and only those compute.
#include <algorithm>
#include <anabranch/core/cpu_features.hpp>
#include <anabranch/experts/expert_ffn_cpu.hpp>
#include <anabranch/plan/build_cpu.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace ab = anabranch;

int main() {
  constexpr int64_t rows = 512, experts = 16, width = 256, inner = 384, top_k = 2, entries = rows * top_k;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto numbers = [&](int64_t count, float scale) {
    std::vector<float> values(count);
    for (float& value : values) value = scale * normal(random);
    return values;
  };
  const auto x = numbers(rows * width, 1), logits = numbers(rows * experts, 1);
  const auto gate_up = numbers(experts * 2 * inner * width, 1 / std::sqrt(float(width)));  // [expert, 2 inner, width]
  const auto down = numbers(experts * width * inner, 1 / std::sqrt(float(inner)));         // [expert, width, inner]

  // The router: the best two experts of each row, weighted by the softmax of their logits.
  std::vector<int32_t> chosen(entries);
  std::vector<float> chosen_weights(entries);
  for (int64_t row = 0; row < rows; ++row) {
    const float* logit = &logits[row * experts];
    const int first = static_cast<int>(std::max_element(logit, logit + experts) - logit);
    int second = first == 0 ? 1 : 0;
    for (int expert = 0; expert < experts; ++expert) {
      if (expert != first && logit[expert] > logit[second]) second = expert;
    }
    chosen[row * top_k] = first, chosen[row * top_k + 1] = second;
    chosen_weights[row * top_k] = 1 / (1 + std::exp(logit[second] - logit[first]));
    chosen_weights[row * top_k + 1] = 1 - chosen_weights[row * top_k];
  }

  // The plan: which rows each expert works on, and the same seen from the rows.
  std::vector<int32_t> offsets(experts + 1), items(entries), sources(entries);
  std::vector<int32_t> item_offsets(rows + 1), group_ids(entries), entry_ids(entries);
  const ab::PlanArrays plan{offsets.data(), items.data(), sources.data(), experts, entries};
  ab::build_plan_cpu(
      entries, [](int64_t pair) { return pair / top_k; }, [&](int64_t pair) -> int64_t { return chosen[pair]; }, plan);
  ab::transpose_plan_cpu(plan, {item_offsets.data(), group_ids.data(), entry_ids.data(), rows});
  std::vector<float> weights(entries);
  for (int64_t entry = 0; entry < entries; ++entry) weights[entry] = chosen_weights[sources[entry]];

  const ab::ExpertFfn<float> ffn{.x = x.data(),
                                 .gate_up = {gate_up.data(), 2 * inner * width, width, 1, nullptr},
                                 .down = {down.data(), width * inner, inner, 1, nullptr},
                                 .group_offsets = offsets.data(),
                                 .item_ids = items.data(),
                                 .weights = weights.data(),
                                 .item_offsets = item_offsets.data(),
                                 .entry_ids = entry_ids.data(),
                                 .widths = nullptr,
                                 .num_items = rows,
                                 .num_experts = experts,
                                 .num_zero = 0,
                                 .num_identity = 0,
                                 .in_features = width,
                                 .intermediate = inner,
                                 .out_features = width,
                                 .activation = ab::Activation::silu,
                                 .gated = true,
                                 .interleaved = false};
  std::vector<float> y(rows * width), expected(rows * width);
  const auto start = std::chrono::steady_clock::now();
  ab::expert_ffn_cpu(ffn, y.data(), static_cast<float*>(nullptr));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  ab::expert_ffn_reference(ffn, expected.data(), static_cast<float*>(nullptr));  // plain loops: the definition
  float difference = 0;
  for (int64_t i = 0; i < rows * width; ++i) difference = std::max(difference, std::abs(y[i] - expected[i]));
  std::printf("%ld rows, %ld of %ld experts each, on %s: %.1f GFLOP/s, at most %.1e from the definition\n", rows, top_k,
              experts, ab::cpu_isa_name(ab::cpu_isa()).data(), 6.0 * entries * width * inner / seconds / 1e9,
              difference);
  return difference < 1e-4f ? 0 : 1;
}
