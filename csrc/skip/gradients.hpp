// The results of the skip room's backward ops, and their checks.
#pragma once

#include <tuple>

#include "anabranch/skip/gated_ffn_backward.hpp"
#include "skip/checks.hpp"

namespace anabranch {

/// Rows [out, in] of a matrix's gradient, or of one per expert; null where it is empty.
template <class T>
ExpertLinear<T> linear_to(const Tensor& weight, const Tensor& bias) {
  const int64_t dim = weight.dim();
  if (weight.numel() == 0) return {nullptr, 0, 0, 0, data_if_any<T>(bias)};
  return {mutable_data<T>(weight), dim == 3 ? weight.stride(0) : 0, weight.stride(dim - 2), weight.stride(dim - 1),
          data_if_any<T>(bias)};
}

/// Bits of `wanted`, and the order of the results.
enum WantedGatedFfnGradient {
  wants_ffn_x,
  wants_ffn_gate,
  wants_norm_weight,
  wants_norm_bias,
  wants_ffn_gate_up,
  wants_ffn_gate_up_bias,
  wants_ffn_down,
  wants_ffn_down_bias,
  wants_base,
  wants_other_gate_up,
  wants_other_down
};

/// The results of gated_ffn_backward; empty where not wanted.
struct GatedFfnGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  const Tensor& like;
  const int64_t wanted;
  const Tensor x, gate, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias, base, other_gate_up, other_down;

  GatedFfnGradientTensors(const GatedFfnArguments& in, int64_t wanted_bits)
      : like(in.x),
        wanted(wanted_bits),
        x(result(wants_ffn_x, {in.num_rows(), in.features()})),
        gate(result(wants_ffn_gate, {in.num_rows()}, accumulate_type(in.dtype()))),
        norm_weight(result(wants_norm_weight, {in.features()})),
        norm_bias(result(wants_norm_bias, {in.features()})),
        gate_up(result(wants_ffn_gate_up, {in.num_parts() * in.intermediate(), in.features()})),
        gate_up_bias(result(wants_ffn_gate_up_bias, {in.num_parts() * in.intermediate()})),
        down(result(wants_ffn_down, {in.features(), in.intermediate()})),
        down_bias(result(wants_ffn_down_bias, {in.features()})),
        base(result(wants_base, {in.num_rows(), in.features()})),
        other_gate_up(result(wants_other_gate_up, {in.other_parts() * in.other_intermediate(), in.features()})),
        other_down(result(wants_other_down, {in.features(), in.other_intermediate()})) {}

  Tuple tuple() const {
    return {x, gate, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias, base, other_gate_up, other_down};
  }

  template <class T>
  GatedFfnGradients<T> pointers() const {
    const Tensor none = empty_on(like, {0}, like.scalar_type());
    return {data_if_any<T>(x),         data_if_any<accumulate_t<T>>(gate),  data_if_any<T>(norm_weight),
            data_if_any<T>(norm_bias), linear_to<T>(gate_up, gate_up_bias), linear_to<T>(down, down_bias),
            data_if_any<T>(base),      linear_to<T>(other_gate_up, none),   linear_to<T>(other_down, none)};
  }

 private:
  Tensor result(int bit, std::initializer_list<int64_t> shape) const { return result(bit, shape, like.scalar_type()); }
  Tensor result(int bit, std::initializer_list<int64_t> shape, ScalarType type) const {
    return wanted >> bit & 1 ? empty_on(like, shape, type) : empty_on(like, {0}, type);
  }
};

/// What the backward needs of the forward's results.
inline void check_gated_ffn_backward(const char* op, const GatedFfnArguments& in, const Tensor& dy,
                                     const Tensor& row_offsets, const Tensor& item_ids, const Tensor& pre_activation,
                                     const Tensor& other_pre_activation) {
  check_operand(op, "dy", dy, in.x, {in.num_rows(), in.features()}, "the shape of x");
  check_index_vector(op, "row_offsets", row_offsets, in.num_groups() + 2);
  check_index_vector(op, "item_ids", item_ids, in.num_rows());
  check_same_device(op, "row_offsets", row_offsets, "x", in.x);
  check_same_device(op, "item_ids", item_ids, "x", in.x);
  check_operand(op, "pre_activation", pre_activation, in.x, {in.capacity(), in.num_parts() * in.intermediate()},
                "(capacity, features of gate_up_proj)");
  check_operand(op, "other_pre_activation", other_pre_activation, in.x,
                {in.other_down ? in.num_rows() : 0, in.other_parts() * in.other_intermediate()},
                "(rows of x, features of the else-branch)");
}

}  // namespace anabranch
