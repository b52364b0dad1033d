// The activations of expert FFNs and their derivatives, in the precision of their argument.
#pragma once

#include <cmath>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// gelu is the exact one (erf), gelu_tanh its tanh approximation, relu2 the squared relu. Values are the op's enum.
enum class Activation { identity, silu, gelu, gelu_tanh, relu, relu2 };
inline constexpr int num_activations = 6;

namespace detail {

inline constexpr double sqrt_half = 0.70710678118654752440;
inline constexpr double inv_sqrt_2pi = 0.39894228040143267794;
inline constexpr double gelu_tanh_scale = 0.79788456080286535588;  // sqrt(2 / pi)
inline constexpr double gelu_tanh_cubic = 0.044715;

template <class F>
struct ActivationValue {
  F value;
  F derivative;
};

}  // namespace detail

/// act(x) and act'(x). relu's derivative at 0 is 0, as torch's.
template <class F>
ANABRANCH_HOST_DEVICE inline detail::ActivationValue<F> activate(Activation activation, F x) {
  using std::erf, std::exp, std::tanh;
  switch (activation) {
    case Activation::silu: {
      const F sigmoid = F(1) / (F(1) + exp(-x));
      return {x * sigmoid, sigmoid * (F(1) + x * (F(1) - sigmoid))};
    }
    case Activation::gelu: {
      const F cdf = F(0.5) * (F(1) + erf(x * F(detail::sqrt_half)));
      return {x * cdf, cdf + x * F(detail::inv_sqrt_2pi) * exp(F(-0.5) * x * x)};
    }
    case Activation::gelu_tanh: {
      const F t = tanh(F(detail::gelu_tanh_scale) * (x + F(detail::gelu_tanh_cubic) * x * x * x));
      const F slope = F(detail::gelu_tanh_scale) * (F(1) + F(3 * detail::gelu_tanh_cubic) * x * x);
      return {F(0.5) * x * (F(1) + t), F(0.5) * (F(1) + t) + F(0.5) * x * (F(1) - t * t) * slope};
    }
    case Activation::relu:
      return {x > F(0) ? x : F(0), x > F(0) ? F(1) : F(0)};
    case Activation::relu2:
      return {x > F(0) ? x * x : F(0), x > F(0) ? F(2) * x : F(0)};
    default:
      return {x, F(1)};
  }
}

}  // namespace anabranch
