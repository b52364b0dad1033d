// Low-rank residuals in torch: schemas and CPU kernels.
#include <tuple>

#include "anabranch/skip/lowrank_residual_cpu.hpp"
#include "skip/lowrank_checks.hpp"

namespace anabranch {
namespace {

Tensor run_lowrank_residual(const LowRankArguments& given, const std::optional<Tensor>& pre_activation) {
  given.check_all("lowrank_residual");
  const LowRankArguments in = given.with_contiguous_rows();
  const Tensor y = empty_on(in.x, {in.num_groups(), in.rows_per_group(), in.features()}, in.dtype());
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    lowrank_residual_cpu(in.problem<T>(), mutable_data<T>(y),
                         pre_activation ? mutable_data<T>(*pre_activation) : nullptr);
  });
  return y;
}

std::tuple<Tensor, Tensor> lowrank_residual(ANABRANCH_LOWRANK_PARAMETERS) {
  const LowRankArguments in ANABRANCH_LOWRANK_ARGUMENTS;
  in.check_all("lowrank_residual");
  const Tensor pre_activation = empty_on(x, {in.num_groups() * in.rows_per_group(), in.rank()}, in.dtype());
  return {run_lowrank_residual(in, pre_activation), pre_activation};
}

Tensor lowrank_residual_inference(ANABRANCH_LOWRANK_PARAMETERS) {
  return run_lowrank_residual(ANABRANCH_LOWRANK_ARGUMENTS, std::nullopt);
}

LowRankGradientTensors::Tuple lowrank_residual_backward(const Tensor& dy_in, const Tensor& pre_activation_in,
                                                        ANABRANCH_LOWRANK_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "lowrank_residual_backward";
  const LowRankArguments given ANABRANCH_LOWRANK_ARGUMENTS;
  given.check_all(op);
  check_lowrank_backward(op, given, dy_in, pre_activation_in);
  const LowRankArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const LowRankGradientTensors results(in, wanted);
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    lowrank_residual_backward_cpu(in.problem<T>(), data<T>(dy), data<T>(pre_activation), results.pointers<T>());
  });
  return results.tuple();
}

#define ANABRANCH_LOWRANK_SCHEMA                                                                                  \
  "Tensor x, Tensor down_proj, Tensor up_proj, Tensor? norm_weight, Tensor? norm_bias, int norm, float eps, int " \
  "activation, float scale, bool adds_x"

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("lowrank_residual(" ANABRANCH_LOWRANK_SCHEMA ") -> (Tensor, Tensor)");
  m.def("lowrank_residual_inference(" ANABRANCH_LOWRANK_SCHEMA ") -> Tensor");
  m.def("lowrank_residual_backward(Tensor dy, Tensor pre_activation, " ANABRANCH_LOWRANK_SCHEMA
        ", int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("lowrank_residual", TORCH_BOX(&lowrank_residual));
  m.impl("lowrank_residual_inference", TORCH_BOX(&lowrank_residual_inference));
  m.impl("lowrank_residual_backward", TORCH_BOX(&lowrank_residual_backward));
}

}  // namespace anabranch
