// Packed expert weights in torch: packing them, and the inference on them. CPU only: on a GPU the weights are read as
// they are.
#include <algorithm>
#include <type_traits>

#include "anabranch/experts/expert_ffn_packed_cpu.hpp"
#include "experts/packed_checks.hpp"

namespace anabranch {
namespace {

/// Matrices [num_experts, parts * out, in] (or [num_experts, in, parts * out] if transposed) to one packed row each.
Tensor expert_pack(const Tensor& weight, int64_t parts, bool interleaved, bool transposed, int64_t block,
                   int64_t isa_index) {
  constexpr const char* op = "pack_experts";
  check_dim(op, "weight", weight, 3);
  const CpuIsa isa = checked_isa(op, isa_index);
  const int64_t num_experts = weight.size(0), rows = weight.size(transposed ? 2 : 1);
  const int64_t in_features = weight.size(transposed ? 1 : 2);
  check_features(op, "parts", parts);
  check_features(op, "block", block);
  check_features(op, "the number of features out", rows);
  check_features(op, "the number of features in", in_features);
  check(rows % parts == 0, op, ": weight has shape ", shape_string(weight), ", must have a multiple of ", parts,
        " features out; gated weights hold gate and up rows");
  const PackedLinearShape shape{parts, rows / parts, in_features, std::min(block, rows)};
  const auto row_of = [&](int64_t part, int64_t j) {
    return interleaved ? parts * j + part : part * shape.out_features + j;
  };
  const Tensor packed = empty_on(weight, {num_experts, shape.expert_elements()}, weight.scalar_type());
  advise_huge_pages(packed);
  const auto pack = [&]<class T, class Stored>(Type<T>, Type<Stored>) {
    const ExpertLinear<const Stored> linear{data<Stored>(weight), weight.stride(0), weight.stride(transposed ? 2 : 1),
                                            weight.stride(transposed ? 1 : 2), nullptr};
    pack_linear_cpu<T, Stored>(shape, linear, num_experts, row_of, isa, mutable_data<Stored>(packed));
  };
  if (weight.scalar_type() == ScalarType::Char) {
    pack(Type<float>{}, Type<int8_t>{});  // the layout is the same for every floating dtype
  } else {
    check_floating(op, "weight", weight);
    dispatch_floating(weight.scalar_type(), [&]<class T>(Type<T> type) { pack(type, type); });
  }
  return packed;
}

void check_bias(const char* op, const char* name, const std::optional<Tensor>& bias, const Tensor& x,
                int64_t num_experts, int64_t features) {
  if (!bias) return;
  check_dtype(op, name, *bias, x.scalar_type());
  check(bias->is_cpu() && bias->dim() == 2 && bias->size(0) == num_experts && bias->size(1) == features, op, ": ", name,
        " has shape ", shape_string(*bias), ", must be (", num_experts, ", ", features, ") on the CPU");
}

Tensor expert_ffn_packed(const Tensor& x_in, const Tensor& gate_up, const std::optional<Tensor>& gate_up_scales,
                         const std::optional<Tensor>& gate_up_bias, const Tensor& down,
                         const std::optional<Tensor>& down_scales, const std::optional<Tensor>& down_bias,
                         const Tensor& group_offsets, const Tensor& item_ids, const std::optional<Tensor>& weights_in,
                         const Tensor& item_offsets, const Tensor& entry_ids,
                         const std::optional<Tensor>& expert_widths, int64_t intermediate, int64_t out_features,
                         int64_t activation, bool gated, int64_t num_zero, int64_t num_identity, int64_t isa_index) {
  constexpr const char* op = "expert_ffn";
  check_floating(op, "x", x_in);
  check_dim(op, "x", x_in, 2);
  check_features(op, "the number of features of x", x_in.size(1));
  check_features(op, "intermediate", intermediate);
  check_features(op, "out_features", out_features);
  check_dim(op, "gate_up", gate_up, 2);
  const CpuIsa isa = checked_isa(op, isa_index);
  const int64_t num_experts = gate_up.size(0), parts = gated ? 2 : 1;
  const auto gate_up_shape = packed_gate_up_shape(parts, intermediate, x_in.size(1));
  const auto down_shape = packed_down_shape(out_features, intermediate);
  check_packed(op, "gate_up", gate_up, gate_up_scales, x_in, gate_up_shape, num_experts);
  check_packed(op, "down", down, down_scales, x_in, down_shape, num_experts);
  check_dtype(op, "down", down, gate_up.scalar_type());
  const Tensor x = as_contiguous(x_in);
  const auto weights = as_contiguous(weights_in);
  check_activation(op, activation);
  const RoutedPlan plan{group_offsets, item_ids,      weights,  item_offsets,
                        entry_ids,     expert_widths, num_zero, num_identity};
  plan.check_all(op, x, num_experts, out_features);
  plan.check_contents(op, x.size(0), intermediate);
  check_bias(op, "gate_up_bias", gate_up_bias, x, num_experts, parts * intermediate);
  check_bias(op, "down_bias", down_bias, x, num_experts, out_features);
  const auto gate_up_bias_rows = as_contiguous(gate_up_bias), down_bias_rows = as_contiguous(down_bias);
  const Tensor y = empty_on(x, {x.size(0), out_features}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    ExpertFfn<T> ffn{};
    ffn.x = data<T>(x);
    ffn.gate_up.bias = data<T>(gate_up_bias_rows);
    ffn.down.bias = data<T>(down_bias_rows);
    ffn.group_offsets = data<int32_t>(group_offsets);
    ffn.item_ids = data<int32_t>(item_ids);
    ffn.weights = data<accumulate_t<T>>(weights);
    ffn.item_offsets = data<int32_t>(item_offsets);
    ffn.entry_ids = data<int32_t>(entry_ids);
    ffn.widths = data<int32_t>(expert_widths);
    ffn.num_items = x.size(0), ffn.num_experts = num_experts;
    ffn.num_zero = num_zero, ffn.num_identity = num_identity;
    ffn.in_features = x.size(1), ffn.intermediate = intermediate, ffn.out_features = out_features;
    ffn.activation = static_cast<Activation>(activation);
    ffn.gated = gated;
    const auto run = [&]<class Stored>(Type<Stored>) {
      const PackedExperts<T, Stored> packed{data<Stored>(gate_up), data<Stored>(down),
                                            data<accumulate_t<T>>(gate_up_scales), data<accumulate_t<T>>(down_scales),
                                            isa};
      expert_ffn_packed_cpu(ffn, packed, mutable_data<T>(y));
    };
    if constexpr (!std::is_same_v<T, double>) {
      if (gate_up.scalar_type() == ScalarType::Char) return run(Type<int8_t>{});
    }
    run(Type<T>{});
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "expert_pack(Tensor weight, int parts, bool interleaved, bool transposed, int block, int isa) -> "
      "Tensor");
  m.def(
      "expert_ffn_packed(Tensor x, Tensor gate_up, Tensor? gate_up_scales, Tensor? gate_up_bias, Tensor down, Tensor? "
      "down_scales, Tensor? down_bias, Tensor group_offsets, Tensor item_ids, Tensor? weights, Tensor item_offsets, "
      "Tensor entry_ids, Tensor? expert_widths, SymInt intermediate, SymInt out_features, int activation, bool gated, "
      "int num_zero, int num_identity, int isa) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("expert_pack", TORCH_BOX(&expert_pack));
  m.impl("expert_ffn_packed", TORCH_BOX(&expert_ffn_packed));
}

}  // namespace anabranch
