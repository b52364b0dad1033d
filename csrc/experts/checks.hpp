// The arguments of the experts' ops: what they must be on every device, and their form as kernels take them.
#pragma once

#include <tuple>

#include "anabranch/experts/expert_ffn_backward.hpp"
#include "anabranch/experts/grouped_mm.hpp"
#include "plan/checks.hpp"

namespace anabranch {

inline void check_activation(const char* op, int64_t activation) {
  check(activation >= 0 && activation < num_activations, op, ": activation is ", activation, ", must be in [0, ",
        num_activations, ")");
}

/// The plan of an expert FFN as its ops take it: both ways round, with what its groups are.
struct RoutedPlan {
  const Tensor &group_offsets, &item_ids;
  const std::optional<Tensor>& weights;
  const Tensor &item_offsets, &entry_ids;
  const std::optional<Tensor>& expert_widths;
  int64_t num_zero, num_identity;

  void check_all(const char* op, const Tensor& x, int64_t num_experts, int64_t out_features) const {
    check(num_zero >= 0 && num_identity >= 0, op, ": zero_experts, identity_experts are ", num_zero, ", ", num_identity,
          ", must not be negative");
    check_plan(op, group_offsets, item_ids);
    check_same_device(op, "group_offsets", group_offsets, "x", x);
    const int64_t num_groups = group_offsets.size(0) - 1;
    // Each by itself first: the sum of the three could overflow into the right number.
    check(num_zero <= num_groups && num_identity <= num_groups && num_experts + num_zero + num_identity == num_groups,
          op, ": the plan has ", num_groups,
          " groups, must have num_experts + zero_experts + identity_experts = ", num_experts, " + ", num_zero, " + ",
          num_identity, "; route over that many");
    check_weights(op, weights, x, item_ids.size(0));
    check_index_vector(op, "item_offsets", item_offsets, x.size(0) + 1);
    check_index_vector(op, "entry_ids", entry_ids, item_ids.size(0));
    check_same_device(op, "item_offsets", item_offsets, "x", x);
    check_same_device(op, "entry_ids", entry_ids, "x", x);
    if (expert_widths) {
      check_index_vector(op, "expert_widths", *expert_widths, num_experts);
      check_same_device(op, "expert_widths", *expert_widths, "x", x);
    }
    check(num_identity == 0 || x.size(1) == out_features, op, ": identity_experts is ", num_identity,
          ", must be 0 where in_features = ", x.size(1), " and out_features = ", out_features,
          " differ; use zero_experts");
  }

  /// CPU only: what the kernels would otherwise meet as an index out of range.
  void check_contents(const char* op, int64_t num_items, int64_t intermediate) const {
    const int64_t capacity = item_ids.size(0);
    const int64_t entries = check_offsets(op, "group_offsets", group_offsets, capacity);
    check_ids(op, "item_ids", data<int32_t>(item_ids), entries, num_items);
    const int64_t by_item = check_offsets(op, "item_offsets", item_offsets, capacity);
    check_ids(op, "entry_ids", data<int32_t>(entry_ids), by_item, entries);
    for (int64_t g = 0; expert_widths && g < expert_widths->size(0); ++g) {
      const int32_t width = data<int32_t>(*expert_widths)[g];
      check(width >= 0 && width <= intermediate, op, ": expert_widths[", g, "] is ", width, ", must be in [0, ",
            intermediate, "]");
    }
  }
};

/// Arguments of expert_ffn, expert_ffn_inference and expert_ffn_backward, in the order of their schemas.
struct ExpertFfnArguments {
  Tensor x, gate_up_proj;
  std::optional<Tensor> gate_up_bias;
  Tensor down_proj;
  std::optional<Tensor> down_bias;
  Tensor group_offsets, item_ids;
  std::optional<Tensor> weights;
  Tensor item_offsets, entry_ids;
  std::optional<Tensor> expert_widths, frozen_experts;
  int64_t activation;
  bool gated, interleaved, transposed;
  int64_t num_zero, num_identity;

  int64_t num_experts() const { return gate_up_proj.size(0); }
  int64_t num_items() const { return x.size(0); }
  int64_t in_features() const { return x.size(1); }
  int64_t num_parts() const { return gated ? 2 : 1; }
  int64_t intermediate() const { return down_proj.size(transposed ? 1 : 2); }
  int64_t out_features() const { return down_proj.size(transposed ? 2 : 1); }
  int64_t capacity() const { return item_ids.size(0); }
  ScalarType dtype() const { return x.scalar_type(); }
  RoutedPlan routed_plan() const {
    return {group_offsets, item_ids, weights, item_offsets, entry_ids, expert_widths, num_zero, num_identity};
  }

  void check_all(const char* op) const;
  /// As check_all found them valid, with every tensor but the projections in one row-major block.
  ExpertFfnArguments with_contiguous_rows() const {
    ExpertFfnArguments out = *this;
    out.x = as_contiguous(x);
    out.gate_up_bias = as_contiguous(gate_up_bias);
    out.down_bias = as_contiguous(down_bias);
    out.weights = as_contiguous(weights);
    return out;
  }

  template <class T>
  ExpertFfn<T> problem() const {
    ExpertFfn<T> ffn{};
    ffn.x = data<T>(x);
    const int out_dim = transposed ? 2 : 1, in_dim = transposed ? 1 : 2;
    ffn.gate_up = {data<T>(gate_up_proj), gate_up_proj.stride(0), gate_up_proj.stride(out_dim),
                   gate_up_proj.stride(in_dim), data<T>(gate_up_bias)};
    ffn.down = {data<T>(down_proj), down_proj.stride(0), down_proj.stride(out_dim), down_proj.stride(in_dim),
                data<T>(down_bias)};
    ffn.group_offsets = data<int32_t>(group_offsets);
    ffn.item_ids = data<int32_t>(item_ids);
    ffn.weights = data<accumulate_t<T>>(weights);
    ffn.item_offsets = data<int32_t>(item_offsets);
    ffn.entry_ids = data<int32_t>(entry_ids);
    ffn.widths = data<int32_t>(expert_widths);
    ffn.num_items = num_items();
    ffn.num_experts = num_experts();
    ffn.num_zero = num_zero;
    ffn.num_identity = num_identity;
    ffn.in_features = in_features();
    ffn.intermediate = intermediate();
    ffn.out_features = out_features();
    ffn.activation = static_cast<Activation>(activation);
    ffn.gated = gated;
    ffn.interleaved = interleaved;
    return ffn;
  }

 private:
  void check_tensor(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
                    const char* meaning) const {
    check_same_device(op, name, tensor, "x", x);
    const auto sizes = tensor.sizes();
    bool same = sizes.size() == shape.size();
    for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape[i];
    std::string wanted;
    for (size_t i = 0; i < shape.size(); ++i) wanted += (i ? ", " : "") + std::to_string(shape[i]);
    check(same, op, ": ", name, " has shape ", shape_string(tensor), ", must be (", wanted, ") = ", meaning);
  }
};

inline void ExpertFfnArguments::check_all(const char* op) const {
  check_floating(op, "x", x);
  check_dim(op, "x", x, 2);
  check_dim(op, "gate_up_proj", gate_up_proj, 3);
  check_dim(op, "down_proj", down_proj, 3);
  check_activation(op, activation);
  const int64_t experts = num_experts(), rows = num_parts() * intermediate();
  check_dtype(op, "gate_up_proj", gate_up_proj, dtype());
  check_dtype(op, "down_proj", down_proj, dtype());
  check(rows > 0 && in_features() > 0 && out_features() > 0, op, ": gate_up_proj has shape ",
        shape_string(gate_up_proj), ", down_proj ", shape_string(down_proj),
        ", must have no empty feature dimension; expert_widths may be 0");
  const char* two = gated ? "2 * " : "";
  const std::string gate_up_meaning =
      transposed ? std::string("(num_experts, in_features, ") + two + "intermediate), transposed"
                 : std::string("(num_experts, ") + two +
                       "intermediate, in_features); pass transposed=True for the other order";
  check_tensor(op, "gate_up_proj", gate_up_proj,
               transposed ? std::vector{experts, in_features(), rows} : std::vector{experts, rows, in_features()},
               gate_up_meaning.c_str());
  check_tensor(op, "down_proj", down_proj,
               transposed ? std::vector{experts, intermediate(), out_features()}
                          : std::vector{experts, out_features(), intermediate()},
               transposed ? "(num_experts, intermediate, out_features)" : "(num_experts, out_features, intermediate)");
  if (gate_up_bias) {
    check_dtype(op, "gate_up_bias", *gate_up_bias, dtype());
    check_tensor(op, "gate_up_bias", *gate_up_bias, {experts, rows}, "(num_experts, features of gate_up_proj)");
  }
  if (down_bias) {
    check_dtype(op, "down_bias", *down_bias, dtype());
    check_tensor(op, "down_bias", *down_bias, {experts, out_features()}, "(num_experts, out_features)");
  }
  routed_plan().check_all(op, x, experts, out_features());
  if (frozen_experts) {
    check_dtype(op, "frozen_experts", *frozen_experts, ScalarType::Bool);
    check_tensor(op, "frozen_experts", *frozen_experts, {experts}, "(num_experts,)");
    check(frozen_experts->is_contiguous(), op, ": frozen_experts is not contiguous, must be; call .contiguous()");
  }
  check(rows < INT32_MAX / 2, op, ": gate_up_proj has ", rows, " features, must have fewer than 2^30");
  check_capacity(op, capacity(), group_offsets.size(0) - 1, num_items());
}

inline void check_expert_ffn_backward(const char* op, const ExpertFfnArguments& in, const Tensor& dy,
                                      const Tensor& pre_activation) {
  const auto check_matrix = [&](const char* name, const Tensor& tensor, int64_t rows, int64_t columns) {
    check_dtype(op, name, tensor, in.dtype());
    check_same_device(op, name, tensor, "x", in.x);
    check(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, op, ": ", name, " has shape ",
          shape_string(tensor), ", must be (", rows, ", ", columns, ")");
  };
  check_matrix("dy", dy, in.num_items(), in.out_features());
  check_matrix("pre_activation", pre_activation, in.capacity(), in.num_parts() * in.intermediate());
}

/// The parameters of the expert_ffn ops after their own, and ExpertFfnArguments from them.
#define ANABRANCH_EXPERT_FFN_PARAMETERS                                                                           \
  const Tensor &x, const Tensor &gate_up_proj, const std::optional<Tensor>&gate_up_bias, const Tensor &down_proj, \
      const std::optional<Tensor>&down_bias, const Tensor &group_offsets, const Tensor &item_ids,                 \
      const std::optional<Tensor>&weights, const Tensor &item_offsets, const Tensor &entry_ids,                   \
      const std::optional<Tensor>&expert_widths, const std::optional<Tensor>&frozen_experts, int64_t activation,  \
      bool gated, bool interleaved, bool transposed, int64_t num_zero, int64_t num_identity
#define ANABRANCH_EXPERT_FFN_ARGUMENTS                                                                                 \
  {x,         gate_up_proj,  gate_up_bias,   down_proj,  down_bias, group_offsets, item_ids,   weights,  item_offsets, \
   entry_ids, expert_widths, frozen_experts, activation, gated,     interleaved,   transposed, num_zero, num_identity}

/// Bits of `wanted`, and the order of the results.
enum WantedGradient { wants_x, wants_gate_up, wants_gate_up_bias, wants_down, wants_down_bias, wants_weights };

/// The results of expert_ffn_backward; empty where not wanted.
struct ExpertFfnGradientTensors {
  using Tuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  const int64_t wanted;
  const Tensor x, gate_up, gate_up_bias, down, down_bias, weights;

  ExpertFfnGradientTensors(const ExpertFfnArguments& in, int64_t wanted_bits)
      : wanted(wanted_bits),
        x(result(in, wants_x, {in.num_items(), in.in_features()})),
        gate_up(result(in, wants_gate_up, {in.num_experts(), in.gate_up_proj.size(1), in.gate_up_proj.size(2)})),
        gate_up_bias(result(in, wants_gate_up_bias, {in.num_experts(), in.num_parts() * in.intermediate()})),
        down(result(in, wants_down, {in.num_experts(), in.down_proj.size(1), in.down_proj.size(2)})),
        down_bias(result(in, wants_down_bias, {in.num_experts(), in.out_features()})),
        weights(result(in, wants_weights, {in.capacity()}, accumulate_type(in.dtype()))) {}

  bool wants(WantedGradient gradient) const { return (wanted >> gradient & 1) != 0; }
  Tuple tuple() const { return {x, gate_up, gate_up_bias, down, down_bias, weights}; }

  template <class T>
  ExpertFfnGradients<T> pointers(const ExpertFfnArguments& in) const {
    ExpertFfnGradients<T> to{};
    to.x = pointer<T>(wants_x, x);
    to.gate_up = linear(in, pointer<T>(wants_gate_up, gate_up), gate_up, pointer<T>(wants_gate_up_bias, gate_up_bias));
    to.down = linear(in, pointer<T>(wants_down, down), down, pointer<T>(wants_down_bias, down_bias));
    to.weights = pointer<accumulate_t<T>>(wants_weights, weights);
    to.frozen = data<bool>(in.frozen_experts);
    return to;
  }

 private:
  Tensor result(const ExpertFfnArguments& in, WantedGradient gradient, std::initializer_list<int64_t> shape) const {
    return result(in, gradient, shape, in.dtype());
  }
  Tensor result(const ExpertFfnArguments& in, WantedGradient gradient, std::initializer_list<int64_t> shape,
                ScalarType type) const {
    return wants(gradient) ? empty_on(in.x, shape, type) : empty_on(in.x, {0}, type);
  }
  template <class T>
  T* pointer(WantedGradient gradient, const Tensor& tensor) const {
    return wants(gradient) ? mutable_data<T>(tensor) : nullptr;
  }
  template <class T>
  static ExpertLinear<T> linear(const ExpertFfnArguments& in, T* weight, const Tensor& gradient, T* bias) {
    if (!weight) return {nullptr, 0, 0, 0, bias};
    const int out_dim = in.transposed ? 2 : 1, in_dim = in.transposed ? 1 : 2;
    return {weight, gradient.stride(0), gradient.stride(out_dim), gradient.stride(in_dim), bias};
  }
};

/// Tensors of grouped_mm, on every device.
inline void check_grouped_mm(const char* op, const Tensor& x, const Tensor& w, const Tensor& offsets,
                             const std::optional<Tensor>& bias) {
  check_floating(op, "x", x);
  check_dim(op, "x", x, 2);
  check_dtype(op, "w", w, x.scalar_type());
  check_dim(op, "w", w, 3);
  check_same_device(op, "w", w, "x", x);
  check(w.size(1) == x.size(1), op, ": w has shape ", shape_string(w),
        ", must be (num_groups, K, N) with K = ", x.size(1), " as x has; transpose it with .mT");
  check_index_vector(op, "offsets", offsets);
  check(offsets.size(0) == w.size(0) + 1, op, ": offsets has shape ", shape_string(offsets),
        ", must be (num_groups + 1,) = (", w.size(0) + 1,
        ",); it starts with 0, so prepend one to cumulative ends: torch.nn.functional.pad(ends, (1, 0))");
  check_same_device(op, "offsets", offsets, "x", x);
  check_capacity(op, x.size(0), w.size(0), 0);
  if (!bias) return;
  check_dtype(op, "bias", *bias, x.scalar_type());
  check_same_device(op, "bias", *bias, "x", x);
  check(bias->dim() == 2 && bias->size(0) == w.size(0) && bias->size(1) == w.size(2), op, ": bias has shape ",
        shape_string(*bias), ", must be (num_groups, N) = (", w.size(0), ", ", w.size(2), ")");
}

inline void check_grouped_mm_dw(const char* op, const Tensor& x, const Tensor& dy, const Tensor& offsets) {
  check_floating(op, "x", x);
  check_dim(op, "x", x, 2);
  check_dtype(op, "dy", dy, x.scalar_type());
  check_dim(op, "dy", dy, 2);
  check_same_device(op, "dy", dy, "x", x);
  check(dy.size(0) == x.size(0), op, ": dy has ", dy.size(0), " rows, must have ", x.size(0), " as x has");
  check_index_vector(op, "offsets", offsets);
  check(offsets.size(0) >= 1, op, ": offsets has shape (0,), must be (num_groups + 1,)");
  check_same_device(op, "offsets", offsets, "x", x);
  check_capacity(op, x.size(0), offsets.size(0) - 1, 0);
}

template <class T>
StridedMatrix<T> strided_matrix(const Tensor& matrix) {
  return {data<T>(matrix), matrix.stride(matrix.dim() - 2), matrix.stride(matrix.dim() - 1)};
}

}  // namespace anabranch
