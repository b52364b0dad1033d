// The gated mean's CUDA kernels in torch. Schemas are in gated_mean_ops.cpp.
#include "anabranch/mixers/gated_mean.cuh"
#include "cuda.hpp"
#include "mixers/gated_mean_checks.hpp"

namespace anabranch {
namespace {

Tensor gated_mean(const Tensor& x, const Tensor& logits) {
  GatedMeanArguments in("gated_mean", x, logits);
  const OnDeviceOf device(x);
  in.make_contiguous();
  const Tensor u = in.result();
  dispatch_floating(in.x.scalar_type(),
                    [&]<class T>(Type<T>) { gated_mean_cuda<T>(in.problem<T>(), data_if_any<T>(u), device.stream); });
  return u;
}

std::tuple<Tensor, Tensor> gated_mean_backward(const Tensor& du_in, const Tensor& x, const Tensor& logits,
                                               int64_t wanted) {
  constexpr const char* op = "gated_mean_backward";
  GatedMeanArguments in(op, x, logits);
  in.check_upstream(op, du_in);
  const OnDeviceOf device(x);
  in.make_contiguous();
  const Tensor du = as_contiguous(du_in);
  const auto results = in.gradients(wanted);
  dispatch_floating(in.x.scalar_type(), [&]<class T>(Type<T>) {
    gated_mean_backward_cuda<T>(in.problem<T>(), data<T>(du), data_if_any<T>(std::get<0>(results)),
                                data_if_any<T>(std::get<1>(results)), device.stream);
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("gated_mean", TORCH_BOX(&gated_mean));
  m.impl("gated_mean_backward", TORCH_BOX(&gated_mean_backward));
}

}  // namespace anabranch
