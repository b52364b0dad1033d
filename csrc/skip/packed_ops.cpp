// The gated FFN on packed weights: CPU inference. The weights are one expert's, packed by expert_pack.
#include <tuple>

#include "anabranch/experts/expert_ffn_packed_cpu.hpp"
#include "anabranch/skip/gated_ffn_cpu.hpp"
#include "experts/packed_checks.hpp"
#include "skip/checks.hpp"

namespace anabranch {
namespace {

std::tuple<Tensor, Tensor, Tensor> gated_ffn_packed(
    const Tensor& x, const Tensor& choice, const std::optional<Tensor>& gate, const std::optional<Tensor>& norm_weight,
    const std::optional<Tensor>& norm_bias, const Tensor& gate_up, const std::optional<Tensor>& gate_up_scales,
    const std::optional<Tensor>& gate_up_bias, const Tensor& down, const std::optional<Tensor>& down_scales,
    const std::optional<Tensor>& down_bias, const std::optional<Tensor>& base,
    const std::optional<Tensor>& other_gate_up, const std::optional<Tensor>& other_down, std::vector<int64_t> widths,
    int64_t intermediate, int64_t norm, double eps, int64_t activation, bool gated, double scale, bool running_add_x,
    bool skipped_add_x, int64_t other_activation, bool other_gated, bool other_normed, double other_scale, bool cosine,
    int64_t isa_index) {
  constexpr const char* op = "gated_ffn";
  GatedRowsArguments in{x,
                        choice,
                        gate,
                        norm_weight,
                        norm_bias,
                        base,
                        other_gate_up,
                        other_down,
                        widths,
                        norm,
                        eps,
                        activation,
                        gated,
                        scale,
                        running_add_x,
                        skipped_add_x,
                        other_activation,
                        other_gated,
                        other_normed,
                        other_scale};
  check_features(op, "intermediate", intermediate);
  in.check_rows(op, intermediate);
  const int64_t parts = in.num_parts(), features = in.features();
  const CpuIsa isa = checked_isa(op, isa_index);
  check_packed(op, "gate_up", gate_up, gate_up_scales, x, packed_gate_up_shape(parts, intermediate, features), 1);
  check_packed(op, "down", down, down_scales, x, packed_down_shape(features, intermediate), 1);
  check_dtype(op, "down", down, gate_up.scalar_type());
  check_operand(op, "gate_up_bias", gate_up_bias, x, {parts * intermediate}, "(features of gate_up_proj,)");
  check_operand(op, "down_bias", down_bias, x, {features}, "(features of x,)");
  in.make_rows_contiguous();
  in.check_choices(op);
  const auto gate_up_bias_row = as_contiguous(gate_up_bias), down_bias_row = as_contiguous(down_bias);
  const Tensor y = empty_on(x, {in.num_rows(), features}, in.dtype());
  const Tensor cosines = empty_on(x, {cosine ? in.num_rows() : 0}, accumulate_type(in.dtype()));
  const Tensor offsets = empty_on(x, {in.num_groups() + 2}, ScalarType::Int);
  std::vector<int32_t> item_ids(in.num_rows());
  const RowGroups groups{mutable_data<int32_t>(offsets), item_ids.data()};
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    GatedFfn<T> problem = in.problem<T>(intermediate);
    problem.ffn.gate_up.bias = data<T>(gate_up_bias_row);
    problem.ffn.down.bias = data<T>(down_bias_row);
    group_rows_cpu(problem, groups);
    const auto run = [&]<class Stored>(Type<Stored>) {
      const PackedExperts<T, Stored> packed{data<Stored>(gate_up), data<Stored>(down), data<Sum>(gate_up_scales),
                                            data<Sum>(down_scales), isa};
      const auto products = [&](const ExpertFfn<T>& ffn) { return detail::PackedProducts<T, Stored>{ffn, packed}; };
      gated_ffn_cpu(problem, groups, products, mutable_data<T>(y), cosine ? mutable_data<Sum>(cosines) : nullptr,
                    static_cast<T*>(nullptr), static_cast<T*>(nullptr));
    };
    if constexpr (!std::is_same_v<T, double>) {
      if (gate_up.scalar_type() == ScalarType::Char) return run(Type<int8_t>{});
    }
    run(Type<T>{});
  });
  return {y, cosines, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "gated_ffn_packed(Tensor x, Tensor choice, Tensor? gate, Tensor? norm_weight, Tensor? norm_bias, Tensor gate_up, "
      "Tensor? gate_up_scales, Tensor? gate_up_bias, Tensor down, Tensor? down_scales, Tensor? down_bias, Tensor? "
      "base, "
      "Tensor? other_gate_up, Tensor? other_down, int[] widths, int intermediate, int norm, float eps, int activation, "
      "bool gated, float scale, bool running_add_x, bool skipped_add_x, int other_activation, bool other_gated, bool "
      "other_normed, float other_scale, bool cosine, int isa) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) { m.impl("gated_ffn_packed", TORCH_BOX(&gated_ffn_packed)); }

}  // namespace anabranch
