// The gated FFN on packed weights, also of int8: against the definition in double for every dtype, option and
// instruction set, the same bits on several threads, and a row's bits whatever its company.
#include "anabranch/experts/expert_ffn_packed_cpu.hpp"
#include "gated_ffn_runs.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

template <class T, class Stored>
struct Packed {
  std::vector<Stored> gate_up, down;
  std::vector<accumulate_t<T>> gate_up_scales, down_scales;  // empty unless int8

  Packed(const GatedCase& c, const ExpertLinear<const Stored>& first, const ExpertLinear<const Stored>& second)
      : gate_up(pack(packed_gate_up_shape(c.parts, c.s.inner, c.s.features), first)),
        down(pack(packed_down_shape(c.s.features, c.s.inner), second)) {}

  std::vector<std::vector<accumulate_t<T>>> forward(const GatedCase& c, const GatedFfn<T>& problem) const {
    const bool scaled = !down_scales.empty();
    const PackedExperts<T, Stored> packed{gate_up.data(), down.data(), scaled ? gate_up_scales.data() : nullptr,
                                          scaled ? down_scales.data() : nullptr, cpu_isa()};
    const auto products = [&](const ExpertFfn<T>& ffn) { return detail::PackedProducts<T, Stored>{ffn, packed}; };
    return testing::forward<T>(c, problem, products, nullptr);
  }

 private:
  static std::vector<Stored> pack(const PackedLinearShape& shape, const ExpertLinear<const Stored>& linear) {
    std::vector<Stored> to(shape.expert_elements());
    pack_linear_cpu<T, Stored>(
        shape, linear, 1, [&](int64_t part, int64_t j) { return part * shape.out_features + j; }, cpu_isa(), to.data());
    return to;
  }
};

template <class T, class Stored>
void check_forward(const GatedCase& c, const Packed<T, Stored>& packed, const GatedFfn<T>& problem,
                   const std::vector<double>& wanted, const std::vector<double>& wanted_cosine) {
  const double units = sizeof(T) == 2 ? 4 : 64;
  std::vector<std::vector<accumulate_t<T>>> all;
  on_several_threads([&] { return packed.forward(c, problem); },
                     [&](const auto& found) {
                       expect_close<T>(found[0], wanted, units, "packed y");
                       expect_close<T>(found[1], wanted_cosine, units, "packed cosine");
                       all = found;
                     });
  if (c.has_branch()) return;  // its weights are not packed
  const int64_t n = c.s.features;
  for (const int64_t t : {int64_t{0}, c.s.rows / 2, c.s.rows - 1}) {
    GatedCase alone = c;
    alone.s.rows = 1;
    GatedFfn<T> one = problem;
    one.num_rows = 1;
    one.x += t * n;
    if (one.gate) one.gate += t;
    if (one.base) one.base += t * n;
    one.widths.choice = c.o.boolean ? static_cast<const void*>(&c.bytes[t]) : &c.choices[t];
    const auto found = packed.forward(alone, one);
    const std::vector<accumulate_t<T>> row(all[0].begin() + t * n, all[0].begin() + (t + 1) * n);
    expect(same_bits(found[0], row) && same_bits(found[1], {all[1][t]}), "a row depends on its company");
  }
}

template <class T>
void check_case(const GatedCase& c) {
  c.set_context(type_name<T>());
  const GatedOperands<T> operands(c.s, c.parts, c.other_parts);
  const GatedOperands<double> exact(operands);
  const GatedFfn<T> problem = c.problem(operands);
  std::vector<double> wanted(c.s.rows * c.s.features), wanted_cosine(c.s.rows);
  gated_ffn_reference(c.problem(exact), wanted.data(), wanted_cosine.data());
  on_every_cpu_isa([&] {
    check_forward(c, Packed<T, T>(c, problem.ffn.gate_up, problem.ffn.down), problem, wanted, wanted_cosine);
  });
}

/// Weights that are scale * integer, a scale for each feature that comes out.
template <class T>
void check_int8(const GatedCase& c) {
  c.set_context(type_name<T>());
  const GatedOperands<T> operands(c.s, c.parts, c.other_parts);
  GatedOperands<double> exact(operands);
  const auto integers = [](int64_t count) {
    std::vector<int8_t> values(count);
    for (int8_t& value : values) value = static_cast<int8_t>(static_cast<int>(random_bits() % 255) - 127);
    return values;
  };
  const auto gate_up = integers(c.parts * c.s.inner * c.s.features), down = integers(c.s.features * c.s.inner);
  const auto gate_up_scales = random_values<float>(c.parts * c.s.inner, 0.01 / std::sqrt(c.s.features));
  const auto down_scales = random_values<float>(c.s.features, 0.01 / std::sqrt(c.s.inner));
  const auto scaled = [](auto linear, const auto& values, const auto& scales, int64_t columns, auto& to) {
    for (size_t row = 0; row < scales.size(); ++row) {
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t at = static_cast<int64_t>(row) * linear.out_stride + i * linear.in_stride;
        to[at] = values[at] * static_cast<double>(scales[row]);
      }
    }
  };
  const GatedFfn<T> problem = c.problem(operands);
  scaled(problem.ffn.gate_up, gate_up, gate_up_scales, c.s.features, exact.gate_up);
  scaled(problem.ffn.down, down, down_scales, c.s.inner, exact.down);
  std::vector<double> wanted(c.s.rows * c.s.features), wanted_cosine(c.s.rows);
  gated_ffn_reference(c.problem(exact), wanted.data(), wanted_cosine.data());
  const auto lie_as = [](const ExpertLinear<const T>& linear, const std::vector<int8_t>& values) {
    return ExpertLinear<const int8_t>{values.data(), 0, linear.out_stride, linear.in_stride, nullptr};
  };
  on_every_cpu_isa([&] {
    Packed<T, int8_t> packed(c, lie_as(problem.ffn.gate_up, gate_up), lie_as(problem.ffn.down, down));
    packed.gate_up_scales = gate_up_scales;
    packed.down_scales = down_scales;
    check_forward(c, packed, problem, wanted, wanted_cosine);
  });
}

}  // namespace

int main() {
  for_every_gated_case([](const GatedCase& c) {
    check_case<float>(c);
    check_case<bfloat16>(c);
    if (!every_dtype) return;
    check_case<double>(c);
    check_case<half>(c);
    check_int8<float>(c);
    check_int8<bfloat16>(c);
    check_int8<half>(c);
  });
  std::printf("gated_ffn, packed: ok\n");
}
