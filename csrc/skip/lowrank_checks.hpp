// The arguments and results of the lowrank_residual ops, on every device.
#pragma once

#include <tuple>

#include "anabranch/skip/lowrank_residual.hpp"
#include "skip/gradients.hpp"

namespace anabranch {

/// In the order of the schemas. x [num_groups, rows, features], down_proj [num_groups, rank, features], up_proj
/// [num_groups, features, rank].
struct LowRankArguments {
  Tensor x, down_proj, up_proj;
  std::optional<Tensor> norm_weight, norm_bias;
  int64_t norm_kind;
  double eps;
  int64_t activation;
  double scale;
  bool adds_x;

  int64_t num_groups() const { return x.size(0); }
  int64_t rows_per_group() const { return x.size(1); }
  int64_t features() const { return x.size(2); }
  int64_t rank() const { return down_proj.size(1); }
  ScalarType dtype() const { return x.scalar_type(); }
  NormArguments norm() const { return {norm_weight, norm_bias, norm_kind, eps}; }

  void check_all(const char* op) const {
    check_floating(op, "x", x);
    check_dim(op, "x", x, 3);
    check_dim(op, "down_proj", down_proj, 3);
    check(features() > 0 && rank() > 0, op, ": down_proj has shape ", shape_string(down_proj),
          ", must have no empty feature dimension; leave the branch out instead");
    check(features() < INT32_MAX / 2 && rank() < INT32_MAX / 2, op, ": down_proj has shape ", shape_string(down_proj),
          ", must have fewer than 2^30 features");
    check_capacity(op, num_groups() * rows_per_group(), num_groups(), rows_per_group());
    check_activation(op, activation);
    norm().check_all(op, x, features());
    check_operand(op, "down_proj", down_proj, x, {num_groups(), rank(), features()}, "(groups, rank, features) of x");
    check_operand(op, "up_proj", up_proj, x, {num_groups(), features(), rank()}, "(groups, features, rank) of x");
  }
  LowRankArguments with_contiguous_rows() const {
    LowRankArguments out = *this;
    out.x = as_contiguous(x);
    out.norm_weight = as_contiguous(norm_weight);
    out.norm_bias = as_contiguous(norm_bias);
    return out;
  }
  template <class T>
  LowRankResidual<T> problem() const {
    const FfnBranch<T> branch{linear_of<T>(down_proj, std::nullopt),
                              linear_of<T>(up_proj, std::nullopt),
                              rank(),
                              static_cast<Activation>(activation),
                              false,
                              norm_kind > 0,
                              static_cast<accumulate_t<T>>(scale)};
    return {data<T>(x), num_groups(), rows_per_group(), features(), norm().problem<T>(), branch, adds_x};
  }
};

#define ANABRANCH_LOWRANK_PARAMETERS                                                                        \
  const Tensor &x, const Tensor &down_proj, const Tensor &up_proj, const std::optional<Tensor>&norm_weight, \
      const std::optional<Tensor>&norm_bias, int64_t norm, double eps, int64_t activation, double scale, bool adds_x
#define ANABRANCH_LOWRANK_ARGUMENTS \
  {x, down_proj, up_proj, norm_weight, norm_bias, norm, eps, activation, scale, adds_x}

/// The results of lowrank_residual_backward, in the order of `wanted`'s bits; empty where not wanted.
struct LowRankGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  const Tensor x, down_proj, up_proj, norm_weight, norm_bias;

  LowRankGradientTensors(const LowRankArguments& in, int64_t wanted)
      : x(result(in, wanted, 0, {in.num_groups(), in.rows_per_group(), in.features()})),
        down_proj(result(in, wanted, 1, {in.num_groups(), in.rank(), in.features()})),
        up_proj(result(in, wanted, 2, {in.num_groups(), in.features(), in.rank()})),
        norm_weight(result(in, wanted, 3, {in.features()})),
        norm_bias(result(in, wanted, 4, {in.features()})) {}

  Tuple tuple() const { return {x, down_proj, up_proj, norm_weight, norm_bias}; }

  template <class T>
  LowRankResidualGradients<T> pointers() const {
    const Tensor none = empty_on(x, {0}, x.scalar_type());
    return {data_if_any<T>(x), data_if_any<T>(norm_weight), data_if_any<T>(norm_bias), linear_to<T>(down_proj, none),
            linear_to<T>(up_proj, none)};
  }

 private:
  static Tensor result(const LowRankArguments& in, int64_t wanted, int bit, std::initializer_list<int64_t> shape) {
    return wanted >> bit & 1 ? empty_on(in.x, shape, in.dtype()) : empty_on(in.x, {0}, in.dtype());
  }
};

inline void check_lowrank_backward(const char* op, const LowRankArguments& in, const Tensor& dy,
                                   const Tensor& pre_activation) {
  check_operand(op, "dy", dy, in.x, {in.num_groups(), in.rows_per_group(), in.features()}, "the shape of x");
  check_operand(op, "pre_activation", pre_activation, in.x, {in.num_groups() * in.rows_per_group(), in.rank()},
                "(rows of x, rank)");
}

}  // namespace anabranch
