// The skip room in torch: schemas (the room's contract) and CPU kernels. Python's docstrings say what each op means.
#include <tuple>

#include "anabranch/skip/gated_ffn_backward_cpu.hpp"
#include "skip/gradients.hpp"

namespace anabranch {
namespace {

/// Fills y, and what of the rest is given.
void run_gated_ffn(const char* op, const GatedFfnArguments& in, const RowGroups& groups, const Tensor& y,
                   const Tensor& cosine, const std::optional<Tensor>& pre_activation,
                   const std::optional<Tensor>& other_pre_activation) {
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    const GatedFfn<T> problem = in.problem<T>();
    group_rows_cpu(problem, groups);
    const int32_t running = groups.offsets[in.num_groups()];
    check(running <= in.capacity(), op, ": ", running, " rows run, must be at most capacity = ", in.capacity(),
          "; raise capacity");
    gated_ffn_cpu(problem, groups, detail::strided_products, mutable_data<T>(y),
                  cosine.numel() > 0 ? mutable_data<accumulate_t<T>>(cosine) : nullptr,
                  pre_activation ? mutable_data<T>(*pre_activation) : nullptr,
                  other_pre_activation ? mutable_data<T>(*other_pre_activation) : nullptr);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_ffn(ANABRANCH_GATED_FFN_PARAMETERS, bool cosine) {
  constexpr const char* op = "gated_ffn";
  const GatedFfnArguments given ANABRANCH_GATED_FFN_ARGUMENTS;
  given.check_all(op);
  const GatedFfnArguments in = given.with_contiguous_rows();
  in.check_choices(op);
  const Tensor offsets = empty_on(x, {in.num_groups() + 2}, ScalarType::Int);
  const Tensor item_ids = empty_on(x, {in.num_rows()}, ScalarType::Int);
  const Tensor y = empty_on(x, {in.num_rows(), in.features()}, in.dtype());
  const Tensor cosines = empty_on(x, {cosine ? in.num_rows() : 0}, accumulate_type(in.dtype()));
  const Tensor pre_activation = empty_on(x, {in.capacity(), in.num_parts() * in.intermediate()}, in.dtype());
  const Tensor other_pre_activation =
      empty_on(x, {in.other_down ? in.num_rows() : 0, in.other_parts() * in.other_intermediate()}, in.dtype());
  advise_huge_pages(pre_activation);
  const RowGroups groups{mutable_data<int32_t>(offsets), mutable_data<int32_t>(item_ids)};
  run_gated_ffn(op, in, groups, y, cosines, pre_activation, other_pre_activation);
  return {y, cosines, offsets, item_ids, pre_activation, other_pre_activation};
}

std::tuple<Tensor, Tensor, Tensor> gated_ffn_inference(ANABRANCH_GATED_FFN_PARAMETERS, bool cosine) {
  constexpr const char* op = "gated_ffn";
  const GatedFfnArguments given ANABRANCH_GATED_FFN_ARGUMENTS;
  given.check_all(op);
  const GatedFfnArguments in = given.with_contiguous_rows();
  in.check_choices(op);
  const Tensor offsets = empty_on(x, {in.num_groups() + 2}, ScalarType::Int);
  std::vector<int32_t> item_ids(in.num_rows());
  const Tensor y = empty_on(x, {in.num_rows(), in.features()}, in.dtype());
  const Tensor cosines = empty_on(x, {cosine ? in.num_rows() : 0}, accumulate_type(in.dtype()));
  run_gated_ffn(op, in, {mutable_data<int32_t>(offsets), item_ids.data()}, y, cosines, std::nullopt, std::nullopt);
  return {y, cosines, offsets};
}

GatedFfnGradientTensors::Tuple gated_ffn_backward(const Tensor& dy_in, const Tensor& row_offsets,
                                                  const Tensor& item_ids, const Tensor& pre_activation_in,
                                                  const Tensor& other_pre_activation_in, ANABRANCH_GATED_FFN_PARAMETERS,
                                                  int64_t wanted) {
  constexpr const char* op = "gated_ffn_backward";
  const GatedFfnArguments given ANABRANCH_GATED_FFN_ARGUMENTS;
  given.check_all(op);
  check_gated_ffn_backward(op, given, dy_in, row_offsets, item_ids, pre_activation_in, other_pre_activation_in);
  const int64_t last = given.num_groups() + 1;
  check_offsets(op, "row_offsets", row_offsets, given.num_rows());
  check(
      data<int32_t>(row_offsets)[last] == given.num_rows() && data<int32_t>(row_offsets)[last - 1] <= given.capacity(),
      op, ": row_offsets are of another x or capacity, must be the forward's");
  check_ids(op, "item_ids", data<int32_t>(item_ids), given.num_rows(), given.num_rows(), "pass the forward's");
  const GatedFfnArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const Tensor other_pre_activation = as_contiguous(other_pre_activation_in);
  const GatedFfnGradientTensors results(in, wanted);
  for (const Tensor& result : {results.gate_up, results.down}) advise_huge_pages(result);
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    const RowGroups groups{const_cast<int32_t*>(data<int32_t>(row_offsets)),
                           const_cast<int32_t*>(data<int32_t>(item_ids))};
    gated_ffn_backward_cpu(in.problem<T>(), groups, data<T>(dy), data<T>(pre_activation), data<T>(other_pre_activation),
                           results.pointers<T>());
  });
  return results.tuple();
}

#define ANABRANCH_GATED_FFN_SCHEMA                                                                                     \
  "Tensor x, Tensor choice, Tensor? gate, Tensor? norm_weight, Tensor? norm_bias, Tensor gate_up_proj, Tensor? "       \
  "gate_up_bias, Tensor down_proj, Tensor? down_bias, Tensor? base, Tensor? other_gate_up, Tensor? other_down, int[] " \
  "widths, SymInt capacity, int norm, float eps, int activation, bool gated, float scale, bool running_add_x, bool "   \
  "skipped_add_x, int other_activation, bool other_gated, bool other_normed, float other_scale"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("gated_ffn(" ANABRANCH_GATED_FFN_SCHEMA ", bool cosine) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gated_ffn_inference(" ANABRANCH_GATED_FFN_SCHEMA ", bool cosine) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_ffn_backward(Tensor dy, Tensor row_offsets, Tensor item_ids, Tensor pre_activation, Tensor "
      "other_pre_activation, " ANABRANCH_GATED_FFN_SCHEMA
      ", int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("gated_ffn", TORCH_BOX(&gated_ffn));
  m.impl("gated_ffn_inference", TORCH_BOX(&gated_ffn_inference));
  m.impl("gated_ffn_backward", TORCH_BOX(&gated_ffn_backward));
}

}  // namespace anabranch
