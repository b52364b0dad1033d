// The experts room in torch: schemas (the room's contract) and CPU kernels. Python's docstrings say what each op means.
#include <tuple>

#include "anabranch/experts/expert_ffn_backward_cpu.hpp"
#include "anabranch/experts/grouped_mm_cpu.hpp"
#include "experts/checks.hpp"

namespace anabranch {
namespace {

Tensor run_expert_ffn(const char* op, const ExpertFfnArguments& given, const std::optional<Tensor>& pre_activation) {
  given.check_all(op);
  given.routed_plan().check_contents(op, given.num_items(), given.intermediate());
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
  advise_huge_pages(pre_activation);
  return {run_expert_ffn("expert_ffn", in, pre_activation), pre_activation};
}

Tensor expert_ffn_inference(ANABRANCH_EXPERT_FFN_PARAMETERS) {
  return run_expert_ffn("expert_ffn", ANABRANCH_EXPERT_FFN_ARGUMENTS, std::nullopt);
}

ExpertFfnGradientTensors::Tuple expert_ffn_backward(const Tensor& dy_in, const Tensor& pre_activation_in,
                                                    ANABRANCH_EXPERT_FFN_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "expert_ffn_backward";
  const ExpertFfnArguments given ANABRANCH_EXPERT_FFN_ARGUMENTS;
  given.check_all(op);
  given.routed_plan().check_contents(op, given.num_items(), given.intermediate());
  check_expert_ffn_backward(op, given, dy_in, pre_activation_in);
  const ExpertFfnArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const ExpertFfnGradientTensors results(in, wanted);
  for (const Tensor& result : {results.gate_up, results.down}) advise_huge_pages(result);
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    const ExpertFfn<T> ffn = in.problem<T>();
    const ExpertFfnGradients<T> gradients = results.pointers<T>(in);
    expert_ffn_backward_cpu(ffn, data<T>(dy), data<T>(pre_activation), gradients);
    if (gradients.weights) {
      std::fill(gradients.weights + ffn.group_offsets[ffn.num_groups()], gradients.weights + in.capacity(), 0);
    }
  });
  return results.tuple();
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
