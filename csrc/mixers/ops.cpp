// The mixers room in torch: schemas and CPU kernels.
#include "anabranch/mixers/streams_backward_cpu.hpp"
#include "mixers/gradients.hpp"

namespace anabranch {
namespace {

Tensor mix_matrix(const Tensor& logits_in, ANABRANCH_MIXER_PARAMETERS) {
  const MixerArguments in ANABRANCH_MIXER_ARGUMENTS;
  check_logits("mix_matrix", logits_in, in);
  const Tensor logits = as_contiguous(logits_in);
  const Tensor matrices = empty_on(logits, {logits.size(0), num_streams, num_streams}, logits.scalar_type());
  advise_huge_pages(matrices);
  dispatch_sums(logits.scalar_type(), [&]<class Sum>(Type<Sum>) {
    mix_matrix_cpu<Sum>(in.mixer(), logits.size(0), data<Sum>(logits), mutable_data<Sum>(matrices));
  });
  return matrices;
}

Tensor mix_matrix_backward(const Tensor& dmatrices_in, const Tensor& logits_in, const Tensor& matrices_in,
                           ANABRANCH_MIXER_PARAMETERS) {
  constexpr const char* op = "mix_matrix_backward";
  const MixerArguments in ANABRANCH_MIXER_ARGUMENTS;
  check_logits(op, logits_in, in);
  check_matrices(op, "dmatrices", dmatrices_in, logits_in, num_streams);
  check_matrices(op, "matrices", matrices_in, logits_in, num_streams);
  const Tensor dmatrices = as_contiguous(dmatrices_in), matrices = as_contiguous(matrices_in);
  const Tensor logits = as_contiguous(logits_in);
  const Tensor dlogits = empty_on(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  advise_huge_pages(dlogits);
  dispatch_sums(logits.scalar_type(), [&]<class Sum>(Type<Sum>) {
    mix_matrix_backward_cpu<Sum>(in.mixer(), logits.size(0), data<Sum>(dmatrices), data<Sum>(logits),
                                 data<Sum>(matrices), mutable_data<Sum>(dlogits));
  });
  return dlogits;
}

std::tuple<Tensor, Tensor, Tensor> stream_pre(const Tensor& x_in, const std::optional<Tensor>& lag_in,
                                              ANABRANCH_PROJECTION_PARAMETERS) {
  constexpr const char* op = "stream_pre";
  const ProjectionArguments given ANABRANCH_PROJECTION_ARGUMENTS;
  check_pre(op, x_in, lag_in, given);
  const ProjectionArguments in = given.contiguous();
  const Tensor x = as_contiguous(x_in);
  const std::optional<Tensor> lag = as_contiguous(lag_in);
  const StepTensors step(x, in);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    stream_pre_cpu<T>(shape_of(x), in.problem<T>(), data<T>(x), data<Sum>(lag), mutable_data<T>(step.u),
                      mutable_data<Sum>(step.coefficients), mutable_data<Sum>(step.statistics));
  });
  return {step.u, step.coefficients, step.statistics};
}

Tensor stream_post(const Tensor& x_in, const Tensor& y_in, const Tensor& coefficients_in) {
  check_post("stream_post", x_in, y_in, coefficients_in);
  const Tensor x = as_contiguous(x_in), y = as_contiguous(y_in), coefficients = as_contiguous(coefficients_in);
  const Tensor out = empty_on(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type());
  advise_huge_pages(out);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    stream_post_cpu<T>(shape_of(x), data<T>(x), data<T>(y), data<accumulate_t<T>>(coefficients), mutable_data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> stream_post_pre(const Tensor& x_in, const Tensor& y_in,
                                                           const Tensor& coefficients_in,
                                                           ANABRANCH_PROJECTION_PARAMETERS, bool lagged) {
  constexpr const char* op = "stream_post_pre";
  const ProjectionArguments given ANABRANCH_PROJECTION_ARGUMENTS;
  check_post(op, x_in, y_in, coefficients_in);
  check_pre(op, x_in, std::nullopt, given);
  const ProjectionArguments in = given.contiguous();
  const Tensor x = as_contiguous(x_in), y = as_contiguous(y_in), coefficients = as_contiguous(coefficients_in);
  const Tensor out = empty_on(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type());
  advise_huge_pages(out);
  const StepTensors step(x, in);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    stream_post_pre_cpu<T>(shape_of(x), data<T>(x), data<T>(y), data<Sum>(coefficients), in.problem<T>(), lagged,
                           mutable_data<T>(out), mutable_data<T>(step.u), mutable_data<Sum>(step.coefficients),
                           mutable_data<Sum>(step.statistics));
  });
  return {out, step.u, step.coefficients, step.statistics};
}

PreGradientTensors::Tuple stream_pre_backward(const std::optional<Tensor>& du,
                                              const std::optional<Tensor>& dcoefficients,
                                              const std::optional<Tensor>& dnext, const std::optional<Tensor>& dx,
                                              const Tensor& x_in, const std::optional<Tensor>& lag_in,
                                              const Tensor& coefficients_in, const Tensor& statistics_in,
                                              ANABRANCH_PROJECTION_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "stream_pre_backward";
  const ProjectionArguments given ANABRANCH_PROJECTION_ARGUMENTS;
  check_pre(op, x_in, lag_in, given);
  const UpstreamTensors upstream(op, x_in, du, dcoefficients, dnext, dx);
  check_step(op, x_in, given, coefficients_in, statistics_in);
  const ProjectionArguments in = given.contiguous();
  const Tensor x = as_contiguous(x_in), coefficients = as_contiguous(coefficients_in);
  const Tensor statistics = as_contiguous(statistics_in);
  const std::optional<Tensor> lag = as_contiguous(lag_in);
  const PreGradientTensors results(x, in, wanted);
  advise_huge_pages(results.x);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    stream_pre_backward_cpu<T>(shape_of(x), in.problem<T>(), upstream.pointers<T>(), data<T>(x), data<Sum>(lag),
                               data<Sum>(coefficients), data<Sum>(statistics), results.pointers<T>());
  });
  return results.tuple();
}

PostGradientTensors::Tuple stream_post_backward(const Tensor& dout_in, const Tensor& x_in, const Tensor& y_in,
                                                const Tensor& coefficients_in, int64_t wanted) {
  constexpr const char* op = "stream_post_backward";
  check_post(op, x_in, y_in, coefficients_in);
  check_like_streams(op, "dout", dout_in, x_in);
  const Tensor dout = as_contiguous(dout_in), x = as_contiguous(x_in), y = as_contiguous(y_in);
  const Tensor coefficients = as_contiguous(coefficients_in);
  const PostGradientTensors results(x, wanted);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    stream_post_backward_cpu<T>(shape_of(x), data<T>(dout), data<T>(x), data<T>(y), data<accumulate_t<T>>(coefficients),
                                results.pointers<T>());
  });
  return results.tuple();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> stream_post_pre_backward(
    const std::optional<Tensor>& du, const std::optional<Tensor>& dcoefficients, const std::optional<Tensor>& dnext,
    const std::optional<Tensor>& dout, const Tensor& x_in, const Tensor& y_in, const Tensor& coefficients_in,
    const Tensor& next_coefficients_in, const Tensor& next_statistics_in, ANABRANCH_PROJECTION_PARAMETERS,
    bool lagged) {
  constexpr const char* op = "stream_post_pre_backward";
  const ProjectionArguments given ANABRANCH_PROJECTION_ARGUMENTS;
  check_post(op, x_in, y_in, coefficients_in);
  check_pre(op, x_in, std::nullopt, given);
  const UpstreamTensors upstream(op, x_in, du, dcoefficients, dnext, dout);
  check_step(op, x_in, given, next_coefficients_in, next_statistics_in);
  const ProjectionArguments in = given.contiguous();
  const Tensor x = as_contiguous(x_in), y = as_contiguous(y_in), coefficients = as_contiguous(coefficients_in);
  const Tensor next_coefficients = as_contiguous(next_coefficients_in);
  const Tensor next_statistics = as_contiguous(next_statistics_in);
  const PreGradientTensors pre(x, in, wants_all_pre);
  const PostGradientTensors post(x, wants_post_y | wants_post_coefficients);
  advise_huge_pages(pre.x);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    stream_post_pre_backward_cpu<T>(shape_of(x), data<T>(x), data<T>(y), data<Sum>(coefficients), in.problem<T>(),
                                    lagged, upstream.pointers<T>(), data<Sum>(next_coefficients),
                                    data<Sum>(next_statistics), pre.pointers<T>(), post.pointers<T>());
  });
  return {pre.x, post.y, post.coefficients, pre.weight, pre.scale, pre.bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("mix_matrix(Tensor logits, " ANABRANCH_MIXER_SCHEMA ") -> Tensor");
  m.def("mix_matrix_backward(Tensor dmatrices, Tensor logits, Tensor matrices, " ANABRANCH_MIXER_SCHEMA ") -> Tensor");
  m.def("stream_pre(Tensor x, Tensor? lag, " ANABRANCH_PROJECTION_SCHEMA ") -> (Tensor, Tensor, Tensor)");
  m.def("stream_post(Tensor x, Tensor y, Tensor coefficients) -> Tensor");
  m.def("stream_post_pre(Tensor x, Tensor y, Tensor coefficients, " ANABRANCH_PROJECTION_SCHEMA
        ", bool lagged) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "stream_pre_backward(Tensor? du, Tensor? dcoefficients, Tensor? dnext, Tensor? dx, Tensor x, Tensor? lag, "
      "Tensor coefficients, Tensor statistics, " ANABRANCH_PROJECTION_SCHEMA
      ", int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "stream_post_backward(Tensor dout, Tensor x, Tensor y, Tensor coefficients, int wanted) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "stream_post_pre_backward(Tensor? du, Tensor? dcoefficients, Tensor? dnext, Tensor? dout, Tensor x, Tensor y, "
      "Tensor coefficients, Tensor next_coefficients, Tensor next_statistics, " ANABRANCH_PROJECTION_SCHEMA
      ", bool lagged) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("mix_matrix", TORCH_BOX(&mix_matrix));
  m.impl("mix_matrix_backward", TORCH_BOX(&mix_matrix_backward));
  m.impl("stream_pre", TORCH_BOX(&stream_pre));
  m.impl("stream_post", TORCH_BOX(&stream_post));
  m.impl("stream_post_pre", TORCH_BOX(&stream_post_pre));
  m.impl("stream_pre_backward", TORCH_BOX(&stream_pre_backward));
  m.impl("stream_post_backward", TORCH_BOX(&stream_post_backward));
  m.impl("stream_post_pre_backward", TORCH_BOX(&stream_post_pre_backward));
}

}  // namespace anabranch
