// The experts room in torch: schemas (the room's contract) and CPU kernels. Python's docstrings say what each op means.
#include <tuple>

#include "anabranch/experts/expert_ffn_backward_cpu.hpp"
#include "anabranch/experts/grouped_mm_cpu.hpp"
#include "experts/checks.hpp"

namespace anabranch {
namespace {

/// CPU only: what the kernels would otherwise meet as an index out of range.
void check_plan_contents(const char* op, const ExpertFfnArguments& in) {
  const int64_t entries = check_offsets(op, "group_offsets", in.group_offsets, in.capacity());
  check_ids(op, "item_ids", data<int32_t>(in.item_ids), entries, in.num_items());
  const int64_t by_item = check_offsets(op, "item_offsets", in.item_offsets, in.capacity());
  check_ids(op, "entry_ids", data<int32_t>(in.entry_ids), by_item, entries);
  for (int64_t g = 0; in.expert_widths && g < in.num_experts(); ++g) {
    const int32_t width = data<int32_t>(*in.expert_widths)[g];
    check(width >= 0 && width <= in.intermediate(), op, ": expert_widths[", g, "] is ", width, ", must be in [0, ",
          in.intermediate(), "]");
  }
}

#define ANABRANCH_EXPERT_FFN_PARAMETERS                                                                           \
  const Tensor &x, const Tensor &gate_up_proj, const std::optional<Tensor>&gate_up_bias, const Tensor &down_proj, \
      const std::optional<Tensor>&down_bias, const Tensor &group_offsets, const Tensor &item_ids,                 \
      const std::optional<Tensor>&weights, const Tensor &item_offsets, const Tensor &entry_ids,                   \
      const std::optional<Tensor>&expert_widths, const std::optional<Tensor>&frozen_experts, int64_t activation,  \
      bool gated, bool interleaved, bool transposed, int64_t num_zero, int64_t num_identity
#define ANABRANCH_EXPERT_FFN_ARGUMENTS                                                                                 \
  {x,         gate_up_proj,  gate_up_bias,   down_proj,  down_bias, group_offsets, item_ids,   weights,  item_offsets, \
   entry_ids, expert_widths, frozen_experts, activation, gated,     interleaved,   transposed, num_zero, num_identity}

Tensor run_expert_ffn(const char* op, const ExpertFfnArguments& given, const std::optional<Tensor>& pre_activation) {
  given.check_all(op);
  check_plan_contents(op, given);
  const ExpertFfnArguments in = given.with_contiguous_rows();
  const Tensor y = empty_on(in.x, {in.num_items(), in.out_features()}, in.dtype());
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    expert_ffn_cpu(in.problem<T>(), mutable_data<T>(y), pre_activation ? mutable_data<T>(*pre_activation) : nullptr);
  });
  return y;
}

std::tuple<Tensor, Tensor> expert_ffn(ANABRANCH_EXPERT_FFN_PARAMETERS) {
  const ExpertFfnArguments in ANABRANCH_EXPERT_FFN_ARGUMENTS;
  in.check_all("expert_ffn");
  const Tensor pre_activation = empty_on(x, {in.capacity(), in.num_parts() * in.intermediate()}, in.dtype());
  return {run_expert_ffn("expert_ffn", in, pre_activation), pre_activation};
}

Tensor expert_ffn_inference(ANABRANCH_EXPERT_FFN_PARAMETERS) {
  return run_expert_ffn("expert_ffn", ANABRANCH_EXPERT_FFN_ARGUMENTS, std::nullopt);
}

/// Bits of `wanted`, and the order of the results.
enum WantedGradient { wants_x, wants_gate_up, wants_gate_up_bias, wants_down, wants_down_bias, wants_weights };
using ExpertFfnGradientTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ExpertFfnGradientTensors expert_ffn_backward(const Tensor& dy_in, const Tensor& pre_activation_in,
                                             ANABRANCH_EXPERT_FFN_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "expert_ffn_backward";
  const ExpertFfnArguments given ANABRANCH_EXPERT_FFN_ARGUMENTS;
  given.check_all(op);
  check_plan_contents(op, given);
  check_expert_ffn_backward(op, given, dy_in, pre_activation_in);
  const ExpertFfnArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const int64_t experts = in.num_experts(), rows = in.num_parts() * in.intermediate();
  const auto wants = [&](WantedGradient gradient) { return (wanted >> gradient & 1) != 0; };
  const auto result = [&](WantedGradient gradient, std::initializer_list<int64_t> shape, ScalarType type) {
    return wants(gradient) ? empty_on(x, shape, type) : empty_on(x, {0}, type);
  };
  const Tensor dx = result(wants_x, {in.num_items(), in.in_features()}, in.dtype());
  const Tensor dgate_up = result(wants_gate_up, {experts, gate_up_proj.size(1), gate_up_proj.size(2)}, in.dtype());
  const Tensor dgate_up_bias = result(wants_gate_up_bias, {experts, rows}, in.dtype());
  const Tensor ddown = result(wants_down, {experts, down_proj.size(1), down_proj.size(2)}, in.dtype());
  const Tensor ddown_bias = result(wants_down_bias, {experts, in.out_features()}, in.dtype());
  const Tensor dweights = result(wants_weights, {in.capacity()}, accumulate_type(in.dtype()));
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    const ExpertFfn<T> ffn = in.problem<T>();
    const auto to = [&](WantedGradient gradient, const Tensor& tensor) {
      return wants(gradient) ? mutable_data<T>(tensor) : nullptr;
    };
    const auto linear = [&](T* weight, const Tensor& shaped, T* bias) -> ExpertLinear<T> {
      const int64_t step = shaped.size(2);  // the gradient is contiguous
      return {weight, shaped.size(1) * step, transposed ? 1 : step, transposed ? step : 1, bias};
    };
    ExpertFfnGradients<T> gradients{};
    gradients.x = to(wants_x, dx);
    gradients.gate_up = linear(to(wants_gate_up, dgate_up), gate_up_proj, to(wants_gate_up_bias, dgate_up_bias));
    gradients.down = linear(to(wants_down, ddown), down_proj, to(wants_down_bias, ddown_bias));
    gradients.weights = wants(wants_weights) ? mutable_data<accumulate_t<T>>(dweights) : nullptr;
    gradients.frozen = data<bool>(frozen_experts);
    expert_ffn_backward_cpu(ffn, data<T>(dy), data<T>(pre_activation), gradients);
    if (gradients.weights) {
      std::fill(gradients.weights + ffn.group_offsets[ffn.num_groups()], gradients.weights + in.capacity(), 0);
    }
  });
  return {dx, dgate_up, dgate_up_bias, ddown, ddown_bias, dweights};
}

Tensor grouped_mm(const Tensor& x, const Tensor& w, const Tensor& offsets, const std::optional<Tensor>& bias_in) {
  constexpr const char* op = "grouped_mm";
  check_grouped_mm(op, x, w, offsets, bias_in);
  check_offsets(op, "offsets", offsets, x.size(0));
  const auto bias = as_contiguous(bias_in);
  const Tensor out = empty_on(x, {x.size(0), w.size(2)}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    grouped_mm_cpu(GroupedMm<T>{strided_matrix<T>(x), strided_matrix<T>(w), w.stride(0), data<T>(bias),
                                data<int32_t>(offsets), w.size(0), x.size(0), x.size(1), w.size(2),
                                mutable_data<T>(out)});
  });
  return out;
}

Tensor grouped_mm_dw(const Tensor& x, const Tensor& dy, const Tensor& offsets) {
  constexpr const char* op = "grouped_mm_dw";
  check_grouped_mm_dw(op, x, dy, offsets);
  check_offsets(op, "offsets", offsets, x.size(0));
  const int64_t num_groups = offsets.size(0) - 1;
  const Tensor dw = empty_on(x, {num_groups, x.size(1), dy.size(1)}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    grouped_mm_dw_cpu(GroupedMmDw<T>{strided_matrix<T>(x), strided_matrix<T>(dy), data<int32_t>(offsets), num_groups,
                                     x.size(1), dy.size(1), mutable_data<T>(dw)});
  });
  return dw;
}

#define ANABRANCH_EXPERT_FFN_SCHEMA                                                                                  \
  "Tensor x, Tensor gate_up_proj, Tensor? gate_up_bias, Tensor down_proj, Tensor? down_bias, Tensor group_offsets, " \
  "Tensor item_ids, Tensor? weights, Tensor item_offsets, Tensor entry_ids, Tensor? expert_widths, "                 \
  "Tensor? frozen_experts, int activation, bool gated, bool interleaved, bool transposed, int num_zero, int "        \
  "num_identity"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("grouped_mm(Tensor x, Tensor w, Tensor offsets, Tensor? bias) -> Tensor");
  m.def("grouped_mm_dw(Tensor x, Tensor dy, Tensor offsets) -> Tensor");
  m.def("expert_ffn(" ANABRANCH_EXPERT_FFN_SCHEMA ") -> (Tensor, Tensor)");
  m.def("expert_ffn_inference(" ANABRANCH_EXPERT_FFN_SCHEMA ") -> Tensor");
  m.def("expert_ffn_backward(Tensor dy, Tensor pre_activation, " ANABRANCH_EXPERT_FFN_SCHEMA
        ", int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("grouped_mm", TORCH_BOX(&grouped_mm));
  m.impl("grouped_mm_dw", TORCH_BOX(&grouped_mm_dw));
  m.impl("expert_ffn", TORCH_BOX(&expert_ffn));
  m.impl("expert_ffn_inference", TORCH_BOX(&expert_ffn_inference));
  m.impl("expert_ffn_backward", TORCH_BOX(&expert_ffn_backward));
}

}  // namespace anabranch
