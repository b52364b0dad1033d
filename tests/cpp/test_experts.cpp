// The expert FFN on the CPU, forward, packed and backward: against the definitions in double for every dtype, option
// and instruction set, and the same bits on several threads as on one.
#include "../simt/routed_plan.hpp"
#include "anabranch/experts/expert_ffn_backward_cpu.hpp"
#include "anabranch/experts/expert_ffn_packed_cpu.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

struct Shape {
  int64_t items, experts, in, inner, out;
};

struct Options {
  bool gated, interleaved, transposed, biased, narrow, weighted;
  int64_t num_null;  // zero groups, and as many identity groups
  Activation activation;
};

/// Enough for five workers in every loop; more rows per expert than one chunk; one item, odd widths.
constexpr Shape shapes[] = {{170, 4, 200, 100, 200}, {800, 3, 33, 37, 49}, {1, 3, 5, 7, 5}};
constexpr Options options[] = {
    {true, false, false, false, false, true, 0, Activation::silu},
    {true, true, true, true, true, true, 1, Activation::gelu},
    {false, false, true, true, false, false, 1, Activation::relu2},
    {true, true, false, false, true, false, 0, Activation::gelu_tanh},
};
constexpr float untouched = 0.5f;  // in every dtype

/// A matrix per expert, [out, in] or turned.
template <class T>
ExpertLinear<T> linear(T* weight, int64_t out, int64_t in, bool transposed, T* bias) {
  return {weight, out * in, transposed ? 1 : in, transposed ? out : 1, bias};
}

template <class T>
struct Inputs {
  Inputs(const Shape& s, int64_t parts, int64_t capacity)
      : x(random_values<T>(s.items * s.in)),
        gate_up(random_values<T>(s.experts * parts * s.inner * s.in, 1 / std::sqrt(s.in))),
        gate_up_bias(random_values<T>(s.experts * parts * s.inner, 0.5)),
        down(random_values<T>(s.experts * s.out * s.inner, 1 / std::sqrt(s.inner))),
        down_bias(random_values<T>(s.experts * s.out, 0.5)),
        dy(random_values<T>(s.items * s.out)),
        saved(random_values<T>(capacity * parts * s.inner)),
        weights(random_values<accumulate_t<T>>(capacity)) {}
  template <class From>
  explicit Inputs(const Inputs<From>& from)
      : x(converted<T>(from.x)),
        gate_up(converted<T>(from.gate_up)),
        gate_up_bias(converted<T>(from.gate_up_bias)),
        down(converted<T>(from.down)),
        down_bias(converted<T>(from.down_bias)),
        dy(converted<T>(from.dy)),
        saved(converted<T>(from.saved)),
        weights(converted<accumulate_t<T>>(from.weights)) {}

  std::vector<T> x, gate_up, gate_up_bias, down, down_bias, dy, saved;
  std::vector<accumulate_t<T>> weights;
};

struct Case {
  Shape s;
  Options o;
  int64_t parts = o.gated ? 2 : 1;
  TestPlan plan{s.items, s.experts + 2 * o.num_null, s.items * s.experts + 9, 0.35, random_bits};
  std::vector<int32_t> widths;
  bool frozen[4] = {false, false, true, false};

  Case(const Shape& shape, const Options& opts) : s(shape), o(opts) {
    for (int64_t g = 0; g < s.experts; ++g) widths.push_back(static_cast<int32_t>(g == 1 ? 0 : s.inner - 1 - g));
  }
  void set_context(const char* type) const {
    context = std::string("expert_ffn, ") + type + ", " + std::to_string(s.items) + " items, activation " +
              std::to_string(static_cast<int>(o.activation));
  }
  template <class T>
  ExpertFfn<T> problem(const Inputs<T>& from) const {
    ExpertFfn<T> ffn{};
    ffn.x = from.x.data();
    ffn.gate_up =
        linear(from.gate_up.data(), parts * s.inner, s.in, o.transposed, o.biased ? from.gate_up_bias.data() : nullptr);
    ffn.down = linear(from.down.data(), s.out, s.inner, o.transposed, o.biased ? from.down_bias.data() : nullptr);
    ffn.group_offsets = plan.offsets.data();
    ffn.item_ids = plan.items.data();
    ffn.weights = o.weighted ? from.weights.data() : nullptr;
    ffn.item_offsets = plan.item_offsets.data();
    ffn.entry_ids = plan.entry_ids.data();
    ffn.widths = o.narrow ? widths.data() : nullptr;
    ffn.num_items = s.items, ffn.num_experts = s.experts;
    ffn.num_zero = ffn.num_identity = o.num_null;
    ffn.in_features = s.in, ffn.intermediate = s.inner, ffn.out_features = s.out;
    ffn.activation = o.activation;
    ffn.gated = o.gated, ffn.interleaved = o.gated && o.interleaved;
    return ffn;
  }
  template <class T>
  std::vector<T> filled(int64_t count) const {
    return std::vector<T>(count, T(untouched));
  }
};

/// y and pre_activation.
template <class T, class Kernel>
std::vector<std::vector<T>> forward(const Case& c, const Inputs<T>& inputs, Kernel kernel) {
  std::vector results{c.filled<T>(c.s.items * c.s.out), c.filled<T>(c.plan.capacity * c.parts * c.s.inner)};
  kernel(c.problem(inputs), results[0].data(), results[1].data());
  return results;
}

/// Every gradient, that of the weights last; in the type of the sums, which holds every T.
template <class T, class Kernel>
std::vector<std::vector<accumulate_t<T>>> backward(const Case& c, const Inputs<T>& inputs, Kernel kernel) {
  const Shape& s = c.s;
  std::vector results{c.filled<T>(s.items * s.in), c.filled<T>(s.experts * c.parts * s.inner * s.in),
                      c.filled<T>(s.experts * c.parts * s.inner), c.filled<T>(s.experts * s.out * s.inner),
                      c.filled<T>(s.experts * s.out)};
  std::vector<accumulate_t<T>> dweights(c.plan.capacity, untouched);
  ExpertFfnGradients<T> to{};
  to.x = results[0].data();
  to.gate_up = linear(results[1].data(), c.parts * s.inner, s.in, c.o.transposed, results[2].data());
  to.down = linear(results[3].data(), s.out, s.inner, c.o.transposed, results[4].data());
  to.weights = dweights.data();
  to.frozen = c.o.narrow ? c.frozen : nullptr;
  kernel(c.problem(inputs), inputs.dy.data(), inputs.saved.data(), to);
  std::vector<std::vector<accumulate_t<T>>> sums;
  for (const auto& result : results) sums.push_back(converted<accumulate_t<T>>(result));
  sums.push_back(dweights);
  return sums;
}

template <class T, class Stored>
std::vector<std::vector<T>> packed_forward(const Case& c, const ExpertFfn<T>& ffn, const std::vector<Stored>& gate_up,
                                           const std::vector<Stored>& down, const accumulate_t<T>* gate_up_scales,
                                           const accumulate_t<T>* down_scales) {
  const Shape& s = c.s;
  const auto pack = [&](const PackedLinearShape& shape, const ExpertLinear<const Stored>& matrices, auto row_of) {
    std::vector<Stored> to(s.experts * shape.expert_elements());
    pack_linear_cpu<T, Stored>(shape, matrices, s.experts, row_of, cpu_isa(), to.data());
    return to;
  };
  const auto first =
      pack(packed_gate_up_shape(c.parts, s.inner, s.in),
           linear(gate_up.data(), c.parts * s.inner, s.in, c.o.transposed, static_cast<const Stored*>(nullptr)),
           [&](int64_t part, int64_t j) { return ffn.gate_up_row(part, j); });
  const auto second = pack(packed_down_shape(s.out, s.inner),
                           linear(down.data(), s.out, s.inner, c.o.transposed, static_cast<const Stored*>(nullptr)),
                           [](int64_t, int64_t j) { return j; });
  std::vector<std::vector<T>> results(1, c.filled<T>(s.items * s.out));
  const PackedExperts<T, Stored> packed{first.data(), second.data(), gate_up_scales, down_scales, cpu_isa()};
  expert_ffn_packed_cpu(ffn, packed, results[0].data());
  return results;
}

template <class T>
void check_case(const Case& c) {
  c.set_context(type_name<T>());
  const double units = sizeof(T) == 2 ? 4 : 64;
  const Inputs<T> inputs(c.s, c.parts, c.plan.capacity);
  const Inputs<double> exact(inputs);
  const auto wanted = forward(c, exact, expert_ffn_reference<double>);
  const auto gradients = backward(c, exact, expert_ffn_backward_reference<double>);
  const char* names[] = {"dx", "dgate_up", "dgate_up_bias", "ddown", "ddown_bias", "dweights"};
  on_every_cpu_isa([&] {
    on_several_threads([&] { return forward(c, inputs, expert_ffn_cpu<T>); },
                       [&](const auto& found) {
                         expect_close<T>(found[0], wanted[0], units, "y");
                         expect_close<T>(found[1], wanted[1], units, "pre_activation");
                       });
    on_several_threads([&] { return backward(c, inputs, expert_ffn_backward_cpu<T>); },
                       [&](const auto& found) {
                         for (int i = 0; i < 6; ++i) expect_close<T>(found[i], gradients[i], units, names[i]);
                       });
    const auto packed = [&] {
      return packed_forward<T, T>(c, c.problem(inputs), inputs.gate_up, inputs.down, nullptr, nullptr);
    };
    on_several_threads(packed, [&](const auto& found) { expect_close<T>(found[0], wanted[0], units, "packed y"); });
  });
}

/// Weights that are scale * integer, the scales by gate_up's rows as packed (gate first) and down's rows.
template <class T>
void check_int8(const Case& c) {
  c.set_context(type_name<T>());
  const Shape& s = c.s;
  const Inputs<T> inputs(s, c.parts, c.plan.capacity);
  Inputs<double> exact(inputs);
  const auto integers = [](int64_t count) {
    std::vector<int8_t> values(count);
    for (int8_t& value : values) value = static_cast<int8_t>(static_cast<int>(random_bits() % 255) - 127);
    return values;
  };
  const auto gate_up = integers(s.experts * c.parts * s.inner * s.in), down = integers(s.experts * s.out * s.inner);
  auto gate_up_scales = random_values<float>(s.experts * c.parts * s.inner, 0.01 / std::sqrt(s.in));
  auto down_scales = random_values<float>(s.experts * s.out, 0.01 / std::sqrt(s.inner));
  const auto ffn = c.problem(inputs);
  const auto scaled = [&](const auto& matrices, const auto& values, int64_t rows, int64_t columns, auto scale_of) {
    std::vector<double> to(values.size());
    for (int64_t g = 0; g < s.experts; ++g) {
      for (int64_t i = 0; i < rows * columns; ++i) {
        const int64_t at =
            g * matrices.expert_stride + i / columns * matrices.out_stride + i % columns * matrices.in_stride;
        to[at] = values[at] * static_cast<double>(scale_of(g, i / columns));
      }
    }
    return to;
  };
  exact.gate_up = scaled(ffn.gate_up, gate_up, c.parts * s.inner, s.in, [&](int64_t g, int64_t row) {
    const int64_t part = ffn.interleaved ? row % 2 : row / s.inner, j = ffn.interleaved ? row / 2 : row % s.inner;
    return gate_up_scales[(g * c.parts + part) * s.inner + j];
  });
  exact.down =
      scaled(ffn.down, down, s.out, s.inner, [&](int64_t g, int64_t row) { return down_scales[g * s.out + row]; });
  const auto wanted = forward(c, exact, expert_ffn_reference<double>);
  on_every_cpu_isa([&] {
    on_several_threads(
        [&] { return packed_forward<T, int8_t>(c, ffn, gate_up, down, gate_up_scales.data(), down_scales.data()); },
        [&](const auto& found) { expect_close<T>(found[0], wanted[0], sizeof(T) == 2 ? 4 : 64, "int8 y"); });
  });
}

}  // namespace

int main() {
  for (const Shape& shape : shapes) {
    for (Options o : options) {
      if (shape.in != shape.out) o.num_null = 0;  // an identity group gives x itself
      const Case c(shape, o);
      check_case<float>(c);
      check_case<double>(c);
      check_case<bfloat16>(c);
      check_case<half>(c);
      check_int8<float>(c);
      check_int8<bfloat16>(c);
      check_int8<half>(c);
    }
  }
  std::printf("experts: ok\n");
}
