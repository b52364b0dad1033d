// The arguments of gated_mean and its backward, on every device.
#pragma once

#include <tuple>

#include "anabranch/mixers/gated_mean.hpp"
#include "torch.hpp"

namespace anabranch {

struct GatedMeanArguments {
  Tensor x, logits;

  GatedMeanArguments(const char* op, const Tensor& x_in, const Tensor& logits_in) : x(x_in), logits(logits_in) {
    check_floating(op, "x", x);
    check_dim(op, "x", x, 3);
    check(x.size(1) > 0, op, ": x has shape ", shape_string(x),
          ", must be (tokens, streams > 0, channels); pass one stream at least");
    check_same_device(op, "logits", logits, "x", x);
    check_dtype(op, "logits", logits, x.scalar_type());
    check_dim(op, "logits", logits, 3);
    check(logits.size(0) == x.size(0) && logits.size(1) == x.size(1) && logits.size(2) == x.size(2), op,
          ": logits has shape ", shape_string(logits), ", must be ", shape_string(x),
          " like x; give each number a gate");
  }

  void make_contiguous() { x = as_contiguous(x), logits = as_contiguous(logits); }

  /// du [tokens, channels].
  void check_upstream(const char* op, const Tensor& du) const {
    check_same_device(op, "du", du, "x", x);
    check_dtype(op, "du", du, x.scalar_type());
    check_dim(op, "du", du, 2);
    check(du.size(0) == x.size(0) && du.size(1) == x.size(2), op, ": du has shape ", shape_string(du), ", must be (",
          x.size(0), ", ", x.size(2), ") like the result; pass its gradient");
  }

  template <class T>
  GatedMean<T> problem() const {
    return {data<T>(x), data<T>(logits), x.size(0), x.size(1), x.size(2)};
  }
  Tensor result() const { return empty_on(x, {x.size(0), x.size(2)}, x.scalar_type()); }

  /// dx and dlogits, empty where their bit is not set.
  std::tuple<Tensor, Tensor> gradients(int64_t wanted) const {
    const auto gradient = [&](bool is_wanted) {
      return is_wanted ? empty_on(x, {x.size(0), x.size(1), x.size(2)}, x.scalar_type())
                       : empty_on(x, {0}, x.scalar_type());
    };
    return {gradient(wanted & 1), gradient(wanted & 2)};
  }
};

}  // namespace anabranch
