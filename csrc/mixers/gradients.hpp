// The results of the mixers room's ops, and the checks of what their backward ops take, on every device.
#pragma once

#include "anabranch/mixers/streams_backward.hpp"
#include "mixers/checks.hpp"

namespace anabranch {

/// Calls f(Type<Sum>{}) for float32 or float64.
template <class F>
decltype(auto) dispatch_sums(ScalarType type, F&& f) {
  return type == ScalarType::Double ? f(Type<double>{}) : f(Type<float>{});
}

inline void check_matrices(const char* op, const char* name, const Tensor& matrices, const Tensor& logits, int64_t n) {
  check_shape(op, name, matrices, logits, logits.scalar_type(), {logits.size(0), n, n}, "a matrix per row of logits");
}

inline void check_pre(const char* op, const Tensor& x, const std::optional<Tensor>& lag,
                      const ProjectionArguments& projection) {
  check_streams(op, x);
  check(projection.mixer.num_streams == x.size(1), op, ": num_streams is ", projection.mixer.num_streams, ", must be ",
        x.size(1), " like the streams of x; pass those of the projection");
  projection.check_all(op, x);
  if (lag) check_coefficients(op, "lag", *lag, x);
}

inline void check_post(const char* op, const Tensor& x, const Tensor& y, const Tensor& coefficients) {
  check_streams(op, x);
  check_like_stream(op, "y", y, x);
  check_coefficients(op, "coefficients", coefficients, x);
}

/// statistics has no columns where there is no weight.
inline int64_t num_statistics(const ProjectionArguments& projection) {
  return projection.weight ? projection.map().num_logits() + 2 * projection.segments : 0;
}

inline void check_step(const char* op, const Tensor& x, const ProjectionArguments& projection,
                       const Tensor& coefficients, const Tensor& statistics) {
  check_coefficients(op, "coefficients", coefficients, x);
  check_shape(op, "statistics", statistics, x, accumulate_type(x.scalar_type()),
              {x.size(0), num_statistics(projection)}, "what the forward returned");
}

/// What stream_pre returns.
struct StepTensors {
  const Tensor u, coefficients, statistics;

  StepTensors(const Tensor& x, const ProjectionArguments& projection)
      : u(empty_on(x, {x.size(0), x.size(2)}, x.scalar_type())),
        coefficients(empty_on(x, {x.size(0), num_coefficients(x)}, accumulate_type(x.scalar_type()))),
        statistics(empty_on(x, {x.size(0), num_statistics(projection)}, accumulate_type(x.scalar_type()))) {}
};

/// The upstream gradients of stream_pre, checked and contiguous.
struct UpstreamTensors {
  std::optional<Tensor> du, dcoefficients, dnext, dx;

  UpstreamTensors(const char* op, const Tensor& x, const std::optional<Tensor>& du_in,
                  const std::optional<Tensor>& dcoefficients_in, const std::optional<Tensor>& dnext_in,
                  const std::optional<Tensor>& dx_in) {
    if (du_in) check_like_stream(op, "du", *du_in, x);
    if (dcoefficients_in) check_coefficients(op, "dcoefficients", *dcoefficients_in, x);
    if (dnext_in) check_like_streams(op, "dnext", *dnext_in, x);
    if (dx_in) check_like_streams(op, "dx", *dx_in, x);
    du = as_contiguous(du_in), dcoefficients = as_contiguous(dcoefficients_in);
    dnext = as_contiguous(dnext_in), dx = as_contiguous(dx_in);
  }
  template <class T>
  StreamPreUpstream<T> pointers() const {
    return {data<T>(du), data<accumulate_t<T>>(dcoefficients), data<T>(dnext), data<T>(dx)};
  }
};

/// Bits of `wanted`, in the order of the results.
enum WantedPreGradient {
  wants_pre_x = 1,
  wants_pre_weight = 2,
  wants_pre_scale = 4,
  wants_pre_bias = 8,
  wants_lag = 16
};
inline constexpr int64_t wants_all_pre = wants_pre_x | wants_pre_weight | wants_pre_scale | wants_pre_bias;
enum WantedPostGradient { wants_post_x = 1, wants_post_y = 2, wants_post_coefficients = 4 };

/// Empty where not wanted.
struct PreGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  const Tensor x, weight, scale, bias, lag;

  PreGradientTensors(const Tensor& like, const ProjectionArguments& projection, int64_t wanted)
      : x(result(like, wanted & wants_pre_x, {like.size(0), like.size(1), like.size(2)}, like.scalar_type())),
        weight(result(
            like, projection.weight && wanted & wants_pre_weight,
            {projection.weight ? projection.weight->size(0) : 0, projection.weight ? projection.weight->size(1) : 0},
            sums(like))),
        scale(result(like, wanted & wants_pre_scale, {projection.scale.size(0)}, sums(like))),
        bias(result(like, wanted & wants_pre_bias, {projection.bias.size(0)}, sums(like))),
        lag(result(like, wanted & wants_lag, {like.size(0), num_coefficients(like)}, sums(like))) {}
  Tuple tuple() const { return {x, weight, scale, bias, lag}; }
  template <class T>
  StreamPreGradients<T> pointers() const {
    using Sum = accumulate_t<T>;
    return {data_if_any<T>(x), data_if_any<Sum>(weight), data_if_any<Sum>(scale), data_if_any<Sum>(bias),
            data_if_any<Sum>(lag)};
  }

 private:
  static ScalarType sums(const Tensor& like) { return accumulate_type(like.scalar_type()); }
  static Tensor result(const Tensor& like, bool wanted, std::initializer_list<int64_t> shape, ScalarType type) {
    return wanted ? empty_on(like, shape, type) : empty_on(like, {0}, type);
  }
};

/// Empty where not wanted.
struct PostGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor>;
  const Tensor x, y, coefficients;

  PostGradientTensors(const Tensor& like, int64_t wanted)
      : x(wanted & wants_post_x ? empty_on(like, {like.size(0), like.size(1), like.size(2)}, like.scalar_type())
                                : empty_on(like, {0}, like.scalar_type())),
        y(wanted & wants_post_y ? empty_on(like, {like.size(0), like.size(2)}, like.scalar_type())
                                : empty_on(like, {0}, like.scalar_type())),
        coefficients(empty_on(like, {wanted & wants_post_coefficients ? like.size(0) : 0, num_coefficients(like)},
                              accumulate_type(like.scalar_type()))) {}
  Tuple tuple() const { return {x, y, coefficients}; }
  template <class T>
  StreamPostGradients<T> pointers() const {
    return {data_if_any<T>(x), data_if_any<T>(y), data_if_any<accumulate_t<T>>(coefficients)};
  }
};

}  // namespace anabranch
