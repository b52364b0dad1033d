// The gated mean in torch: schemas and CPU kernels.
#include "anabranch/mixers/gated_mean_cpu.hpp"
#include "mixers/gated_mean_checks.hpp"

namespace anabranch {
namespace {

Tensor gated_mean(const Tensor& x, const Tensor& logits) {
  GatedMeanArguments in("gated_mean", x, logits);
  in.make_contiguous();
  const Tensor u = in.result();
  dispatch_floating(in.x.scalar_type(), [&]<class T>(Type<T>) { gated_mean_cpu(in.problem<T>(), mutable_data<T>(u)); });
  return u;
}

std::tuple<Tensor, Tensor> gated_mean_backward(const Tensor& du_in, const Tensor& x, const Tensor& logits,
                                               int64_t wanted) {
  constexpr const char* op = "gated_mean_backward";
  GatedMeanArguments in(op, x, logits);
  in.check_upstream(op, du_in);
  in.make_contiguous();
  const Tensor du = as_contiguous(du_in);
  const auto results = in.gradients(wanted);
  dispatch_floating(in.x.scalar_type(), [&]<class T>(Type<T>) {
    gated_mean_backward_cpu(in.problem<T>(), data<T>(du), data_if_any<T>(std::get<0>(results)),
                            data_if_any<T>(std::get<1>(results)));
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("gated_mean(Tensor x, Tensor logits) -> Tensor");
  m.def("gated_mean_backward(Tensor du, Tensor x, Tensor logits, int wanted) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("gated_mean", TORCH_BOX(&gated_mean));
  m.impl("gated_mean_backward", TORCH_BOX(&gated_mean_backward));
}

}  // namespace anabranch
