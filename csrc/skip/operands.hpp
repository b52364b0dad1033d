// What the skip room's ops ask of single tensors, of a norm and of a branch's matrices; on every device.
#pragma once

#include <string>
#include <vector>

#include "anabranch/skip/gated_ffn.hpp"
#include "experts/checks.hpp"

namespace anabranch {

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
                        const char* meaning) {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == shape.size();
  std::string wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && sizes[i] == shape[i];
    wanted += (i ? ", " : "") + std::to_string(shape[i]);
  }
  if (shape.size() == 1) wanted += ",";
  check(same, op, ": ", name, " has shape ", shape_string(tensor), ", must be (", wanted, ") = ", meaning);
}

/// A tensor of the problem's dtype, beside x.
inline void check_operand(const char* op, const char* name, const Tensor& tensor, const Tensor& x,
                          const std::vector<int64_t>& shape, const char* meaning) {
  check_dtype(op, name, tensor, x.scalar_type());
  check_same_device(op, name, tensor, "x", x);
  check_shape(op, name, tensor, shape, meaning);
}

inline void check_operand(const char* op, const char* name, const std::optional<Tensor>& tensor, const Tensor& x,
                          const std::vector<int64_t>& shape, const char* meaning) {
  if (tensor) check_operand(op, name, *tensor, x, shape, meaning);
}

/// The norm before a branch, as ops take it.
struct NormArguments {
  std::optional<Tensor> weight, bias;
  int64_t kind;
  double eps;

  void check_all(const char* op, const Tensor& x, int64_t features) const {
    check(kind >= 0 && kind <= static_cast<int64_t>(NormKind::layer), op, ": the norm is ", kind,
          ", must be 0 (none), 1 (rms) or 2 (layer)");
    check(kind > 0 || (!weight && !bias), op,
          ": a weight or bias of a norm is given, must come with the norm; pass norm too");
    check(eps >= 0, op, ": the norm's eps is ", eps, ", must not be negative");
    check_operand(op, "the norm's weight", weight, x, {features}, "(features of x,)");
    check_operand(op, "the norm's bias", bias, x, {features}, "(features of x,)");
  }
  NormArguments contiguous() const { return {as_contiguous(weight), as_contiguous(bias), kind, eps}; }
  template <class T>
  RowNorm<T> problem() const {
    return {static_cast<NormKind>(kind), data<T>(weight), data<T>(bias), eps};
  }
};

/// Rows [out, in] of a matrix, or of one per expert.
template <class T>
ExpertLinear<const T> linear_of(const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t dim = weight.dim();
  return {data<T>(weight), dim == 3 ? weight.stride(0) : 0, weight.stride(dim - 2), weight.stride(dim - 1),
          data<T>(bias)};
}
/// A branch's two matrices as they come: [parts * inner, features] and [features, inner].
inline void check_branch(const char* op, const char* first_name, const Tensor& first, const char* second_name,
                         const Tensor& second, const Tensor& x, int64_t parts) {
  check_dim(op, first_name, first, 2);
  check_dim(op, second_name, second, 2);
  const int64_t inner = second.size(1);
  check(inner > 0, op, ": ", second_name, " has shape ", shape_string(second),
        ", must have an inner feature; width 0 skips");
  check(parts * inner < INT32_MAX / 2, op, ": ", first_name, " has ", parts * inner,
        " features, must have fewer than 2^30");
  check_operand(op, second_name, second, x, {x.size(1), inner}, "(features of x, inner features)");
  check_operand(
      op, first_name, first, x, {parts * inner, x.size(1)},
      parts == 2 ? "(2 * inner features, features of x), gate rows first" : "(inner features, features of x)");
}

}  // namespace anabranch
