// The Hopper backward of the expert FFN, main loops included, against the plain loops: NaN wherever nothing may be
// read, ragged and empty groups, frozen experts, narrow ones, either weight layout, any set of wanted gradients.
#include "anabranch/experts/expert_ffn_backward_sm90.cuh"
#include "expert_ffn_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
struct Gradients {
  explicit Gradients(const ExpertFfnCase<T>& given)
      : x(given.x.size()),
        gate_up(given.gate_up.size()),
        gate_up_bias(given.gate_up_bias.size()),
        down(given.down.size()),
        down_bias(given.down_bias.size()),
        weights(given.capacity) {}
  ExpertFfnGradients<T> pointers(const ExpertFfn<T>& ffn, const bool* frozen, int wanted) {
    const auto pick = [&](int bit, auto& buffer) { return wanted >> bit & 1 ? buffer.data() : nullptr; };
    const auto linear = [](const ExpertLinear<const T>& like, T* weight, T* bias) -> ExpertLinear<T> {
      return {weight, like.expert_stride, like.out_stride, like.in_stride, bias};
    };
    return {pick(0, x), linear(ffn.gate_up, pick(1, gate_up), pick(2, gate_up_bias)),
            linear(ffn.down, pick(3, down), pick(4, down_bias)), pick(5, weights), frozen};
  }
  Guarded<T> x, gate_up, gate_up_bias, down, down_bias;
  Guarded<float> weights;
};

/// Errors are measured against the largest expected value: gradients are sums of many terms of that size.
template <class T>
void expect_close(Guarded<T>& values, Guarded<T>& expected, double tolerance, const char* what) {
  double scale = 1, largest = 0;
  for (int64_t i = 0; i < values.size(); ++i) {
    const double right = static_cast<float>(expected.data()[i]);
    const double error = std::abs(static_cast<float>(values.data()[i]) - right);
    scale = std::max(scale, std::abs(right));
    largest = error <= largest ? largest : error;
    expect(error == error, what);
  }
  expect(largest <= tolerance * scale, what);
}

template <class T, class Shape>
void check_backward(const ExpertFfnShape& shape, int wanted = 63) {
  constexpr double kTolerance = std::is_same_v<T, bfloat16> ? 0.03 : 0.004;
  std::mt19937 random(23);
  ExpertFfnCase<T> given(shape, random);
  given.poison_beyond_widths(false, true);
  const ExpertFfn<T> ffn = given.problem();
  const int64_t inner = shape.intermediate, capacity = given.capacity;
  Guarded<T> dy(random_values<T>(shape.num_items * shape.out_features, random));
  std::vector<T> saved = random_values<T>(capacity * 2 * inner, random);
  for (int64_t e = 0, g = 0; e < capacity; ++e) {
    while (g < given.num_experts && given.group_offsets.data()[g + 1] <= e) ++g;
    for (int64_t c = 0; c < 2 * inner; ++c)
      if (e >= given.routed() || c % inner >= ffn.width(g)) saved[e * 2 * inner + c] = T(NAN);
  }
  Guarded<T> pre_activation(saved);
  std::vector<unsigned char> frozen(static_cast<size_t>(given.num_experts), 0);
  if (shape.narrow) frozen.back() = 1;
  const bool* is_frozen = reinterpret_cast<const bool*>(frozen.data());

  const auto nan = [](int64_t count) { return std::vector<T>(static_cast<size_t>(count), T(NAN)); };
  Guarded<int32_t> schedule(row_tiles_scratch(given.num_experts));
  Guarded<T> weighted_hidden(nan(capacity * inner)), dpre(nan(capacity * 2 * inner));
  Guarded<T> rows(nan(capacity * shape.in_features));
  Guarded<float> dots(std::vector<float>(static_cast<size_t>(expert_ffn_dot_parts(inner) * capacity), NAN));
  Gradients<T> gradients(given), expected(given);
  expert_ffn_backward_reference(ffn, dy.data(), pre_activation.data(), expected.pointers(ffn, is_frozen, 63));
  std::fill(expected.weights.data() + given.entries(), expected.weights.data() + capacity, 0.0f);
  const auto wants = [&](int bit) { return (wanted >> bit & 1) != 0; };
  detail::expert_ffn_sm90_backward<T, Shape>(ffn, capacity, dy.data(), pre_activation.data(),
                                             {schedule.data(), wants(3) ? weighted_hidden.data() : nullptr, dpre.data(),
                                              wants(5) ? dots.data() : nullptr, wants(0) ? rows.data() : nullptr},
                                             gradients.pointers(ffn, is_frozen, wanted), 3, nullptr);
  if (wants(0)) expect_close(gradients.x, expected.x, kTolerance, "dx");
  if (wants(1)) expect_close(gradients.gate_up, expected.gate_up, kTolerance, "dgate_up");
  if (wants(2)) expect_close(gradients.gate_up_bias, expected.gate_up_bias, kTolerance, "dgate_up_bias");
  if (wants(3)) expect_close(gradients.down, expected.down, kTolerance, "ddown");
  if (wants(4)) expect_close(gradients.down_bias, expected.down_bias, kTolerance, "ddown_bias");
  if (wants(5)) expect_close(gradients.weights, expected.weights, 1e-4, "dweights");
  const int64_t size = shape.out_features * inner;
  for (int64_t g = 0; wants(3) && g < given.num_experts; ++g) {
    const bool idle = shape.rows[g] == 0 || frozen[g];
    for (int64_t i = g * size; idle && i < (g + 1) * size; ++i)
      expect(gradients.down.data()[i].bits == 0, "the gradient of an idle or frozen expert is exactly zero");
  }
}

template <class T, class Shape>
void check_shapes() {
  check_backward<T, Shape>({.num_items = 150,
                            .in_features = 72,
                            .intermediate = 136,
                            .out_features = 72,
                            .rows = {140, 0, 1, 30, 20, 40},
                            .num_zero = 1,
                            .num_identity = 1,
                            .spare = 9,
                            .biased = true});
  check_backward<T, Shape>({.num_items = 70,
                            .in_features = 264,
                            .intermediate = 264,
                            .out_features = 136,
                            .rows = {7, 65, 70, 10},
                            .interleaved = true,
                            .narrow = true,
                            .weighted = false});
  check_backward<T, Shape>(
      {.num_items = 4, .in_features = 8, .intermediate = 8, .out_features = 8, .rows = {0, 3}, .spare = 3}, 0b100001);
  check_backward<T, Shape>(
      {.num_items = 4, .in_features = 8, .intermediate = 8, .out_features = 8, .rows = {0, 3}, .spare = 3}, 0b001000);
  check_backward<T, Shape>(
      {.num_items = 4, .in_features = 8, .intermediate = 8, .out_features = 8, .rows = {0, 0}, .spare = 3});
}

}  // namespace

int main() {
  check_shapes<half, detail::Sm90Tall>();
  for_each_schedule([] {
    check_shapes<bfloat16, detail::Sm90Flat>();
    check_shapes<bfloat16, detail::Sm90Tall>();
  });
  std::puts("expert_ffn_backward_sm90: ok");
}
