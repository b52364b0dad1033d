// The gated FFN on the CPU, forward and backward: against the definitions in double for every dtype, option and
// instruction set, and the same bits on several threads as on one.
#include "anabranch/skip/gated_ffn_backward_cpu.hpp"
#include "gated_ffn_runs.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

/// Rows of every group are in order, and those that skip come last.
template <class T>
void check_groups(const GatedCase& c, const GatedFfn<T>& problem) {
  Saved<T> saved(c);
  group_rows_cpu(problem, saved.groups());
  std::vector<bool> seen(c.s.rows, false);
  expect(saved.offsets.front() == 0 && saved.offsets.back() == c.s.rows, "the groups hold other than all rows");
  for (int g = 0; g <= c.num_groups(); ++g) {
    for (int32_t e = saved.offsets[g]; e < saved.offsets[g + 1]; ++e) {
      const int32_t t = saved.item_ids[e];
      expect(problem.widths.group_of(t) == g, "a row is in the wrong group");
      expect(e == saved.offsets[g] || t > saved.item_ids[e - 1], "a group's rows are not in order");
      seen[t] = true;
    }
  }
  expect(std::count(seen.begin(), seen.end(), false) == 0, "a row is in no group");
}

template <class T>
void check_case(const GatedCase& c) {
  c.set_context(type_name<T>());
  const double units = sizeof(T) == 2 ? 4 : 64;
  const GatedOperands<T> operands(c.s, c.parts, c.other_parts);
  const GatedOperands<double> exact(operands);
  const GatedFfn<T> problem = c.problem(operands);
  const GatedFfn<double> exact_problem = c.problem(exact);
  std::vector<double> wanted(c.s.rows * c.s.features), wanted_cosine(c.s.rows);
  gated_ffn_reference(exact_problem, wanted.data(), wanted_cosine.data());
  GatedGradients<double> gradients(c);
  gated_ffn_backward_reference(exact_problem, exact.dy.data(), gradients.places(c));
  const auto wanted_gradients = gradients.sums();
  check_groups(c, problem);
  on_every_cpu_isa([&] {
    const auto check_y = [&](const auto& found) {
      expect_close<T>(found[0], wanted, units, "y");
      expect_close<T>(found[1], wanted_cosine, units, "cosine");
    };
    on_several_threads([&] { return forward(c, problem, detail::strided_products, static_cast<Saved<T>*>(nullptr)); },
                       check_y);
    Saved<T> saved(c);
    check_y(forward(c, problem, detail::strided_products, &saved));
    const auto backward = [&] {
      GatedGradients<T> to(c);
      gated_ffn_backward_cpu(problem, saved.groups(), operands.dy.data(), saved.pre_activation.data(),
                             saved.other_pre_activation.data(), to.places(c));
      return to.sums();
    };
    on_several_threads(backward, [&](const auto& found) {
      for (size_t i = 0; i < found.size(); ++i) {
        expect_close<T>(found[i], wanted_gradients[i], 2 * units, GatedGradients<T>::names[i]);
      }
    });
  });
}

/// Each gradient by itself has the bits that it has among all.
template <class T>
void check_gradients_apart(const GatedCase& c) {
  c.set_context(type_name<T>());
  const GatedOperands<T> operands(c.s, c.parts, c.other_parts);
  const GatedFfn<T> problem = c.problem(operands);
  Saved<T> saved(c);
  forward(c, problem, detail::strided_products, &saved);
  const auto run = [&](GatedGradients<T>& to, const GatedFfnGradients<T>& places) {
    gated_ffn_backward_cpu(problem, saved.groups(), operands.dy.data(), saved.pre_activation.data(),
                           saved.other_pre_activation.data(), places);
    return to.sums();
  };
  GatedGradients<T> whole(c);
  const auto all = run(whole, whole.places(c));
  for (size_t i = 0; i < all.size(); ++i) {
    GatedGradients<T> to(c);
    const GatedFfnGradients<T> every = to.places(c);
    GatedFfnGradients<T> one{};
    if (i == 0) one.x = every.x;
    if (i == 1) one.norm_weight = every.norm_weight;
    if (i == 2) one.norm_bias = every.norm_bias;
    if (i == 3) one.gate_up = every.gate_up, one.gate_up.bias = nullptr;
    if (i == 4) one.gate_up.bias = every.gate_up.bias;
    if (i == 5) one.down = every.down, one.down.bias = nullptr;
    if (i == 6) one.down.bias = every.down.bias;
    if (i == 7) one.base = every.base;
    if (i == 8) one.other_gate_up = every.other_gate_up;
    if (i == 9) one.other_down = every.other_down;
    if (i == 10) one.gate = every.gate;
    const auto found = run(to, one), none = GatedGradients<T>(c).sums();
    for (size_t k = 0; k < all.size(); ++k) {
      expect(same_bits(found[k], k == i ? all[k] : none[k]),
             std::string(GatedGradients<T>::names[k]) + (k == i ? " differs alone" : " was written unasked"));
    }
  }
}

}  // namespace

int main() {
  for_every_gated_case([](const GatedCase& c) {
    check_case<float>(c);
    check_case<bfloat16>(c);
    if (!every_dtype) return;
    check_case<double>(c);
    check_case<half>(c);
    if (c.s.rows < 200) check_gradients_apart<float>(c);
  });
#if !defined(__SANITIZE_THREAD__)
  // More rows that run than the sums of all columns fit the budget for, and than the norm's partial sums at once.
  GatedOptions all = gated_options[1];
  all.only = 1;
  check_case<float>(GatedCase({22000, 400, 3, 2}, all));
#endif
  std::printf("gated_ffn: ok\n");
}
