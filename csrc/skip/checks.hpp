// The arguments of the gated_ffn ops: what they must be on every device, and their form as kernels take them.
#pragma once

#include <vector>

#include "skip/operands.hpp"

namespace anabranch {

/// What gated_ffn and its packed form take but the main branch's matrices.
struct GatedRowsArguments {
  Tensor x, choice;
  std::optional<Tensor> gate, norm_weight, norm_bias, base, other_gate_up, other_down;
  std::vector<int64_t> widths;
  int64_t norm_kind;
  double eps;
  int64_t activation;
  bool gated;
  double scale;
  bool running_add_x, skipped_add_x;
  int64_t other_activation;
  bool other_gated, other_normed;
  double other_scale;

  int64_t num_rows() const { return x.size(0); }
  int64_t features() const { return x.size(1); }
  int64_t num_parts() const { return gated ? 2 : 1; }
  int64_t other_parts() const { return other_gated ? 2 : 1; }
  int64_t other_intermediate() const { return other_down ? other_down->size(1) : 0; }
  int64_t num_groups() const { return static_cast<int64_t>(widths.size()) - (widths[0] == 0); }
  ScalarType dtype() const { return x.scalar_type(); }
  NormArguments norm() const { return {norm_weight, norm_bias, norm_kind, eps}; }

  void check_rows(const char* op, int64_t intermediate) const {
    check_floating(op, "x", x);
    check_dim(op, "x", x, 2);
    check(num_rows() < INT32_MAX && features() > 0 && features() < INT32_MAX / 2, op, ": x has shape ", shape_string(x),
          ", must have fewer than 2^31 - 1 rows and 1 to 2^30 features; split the rows over calls");
    check_decisions(op, intermediate);
    norm().check_all(op, x, features());
    check_activation(op, activation);
    check_operand(op, "the else-branch's rows", base, x, {num_rows(), features()}, "the shape of x");
    check(other_gate_up.has_value() == other_down.has_value(), op,
          ": one matrix of the else-branch is missing, must be both or none; pass both");
    if (!other_down) return;
    check_activation(op, other_activation);
    check_branch(op, "the else-branch's first matrix", *other_gate_up, "the else-branch's second matrix", *other_down,
                 x, other_parts());
    check(!other_normed || norm_kind > 0, op, ": the else-branch reads the norm, must have one to read; pass norm");
  }

  /// CPU only: choices that do not exist.
  void check_choices(const char* op) const {
    const int64_t count = static_cast<int64_t>(widths.size());
    if (choice.scalar_type() == ScalarType::Bool) {
      check(count == 2, op, ": widths has ", count, " entries, must have 2 for bool choices");
      return;
    }
    const int64_t* choices = data<int64_t>(choice);
    for (int64_t t = 0; t < num_rows(); ++t) {
      check(choices[t] >= 0 && choices[t] < count, op, ": the choice of row ", t, " is ", choices[t],
            ", must be in [0, ", count, ") as there are widths; clamp it");
    }
  }

  void make_rows_contiguous() {
    x = as_contiguous(x);
    choice = as_contiguous(choice);
    for (std::optional<Tensor>* rows : {&gate, &norm_weight, &norm_bias, &base}) *rows = as_contiguous(*rows);
  }

  /// The problem without the main branch's matrices.
  template <class T>
  GatedFfn<T> problem(int64_t intermediate) const {
    using Sum = accumulate_t<T>;
    GatedFfn<T> out{};
    out.x = data<T>(x);
    out.num_rows = num_rows();
    out.features = features();
    out.widths.count = static_cast<int>(widths.size());
    for (size_t i = 0; i < widths.size(); ++i) out.widths.width[i] = static_cast<int32_t>(widths[i]);
    out.widths.choice = choice.const_data_ptr();
    out.widths.choice_bytes = choice.scalar_type() == ScalarType::Bool ? 1 : 8;
    out.gate = data<Sum>(gate);
    out.norm = norm().problem<T>();
    out.ffn.intermediate = intermediate;
    out.ffn.activation = static_cast<Activation>(activation);
    out.ffn.gated = gated;
    out.ffn.normed = norm_kind > 0;
    out.ffn.scale = static_cast<Sum>(scale);
    if (other_down) {
      out.other = {linear_of<T>(*other_gate_up, std::nullopt),
                   linear_of<T>(*other_down, std::nullopt),
                   other_intermediate(),
                   static_cast<Activation>(other_activation),
                   other_gated,
                   other_normed,
                   static_cast<Sum>(other_scale)};
    }
    out.base = data<T>(base);
    out.running_add_x = running_add_x;
    out.skipped_add_x = skipped_add_x;
    return out;
  }

 private:
  void check_decisions(const char* op, int64_t intermediate) const {
    const ScalarType type = choice.scalar_type();
    check(type == ScalarType::Bool || type == ScalarType::Long, op, ": the choices are ", dtype_name(type),
          ", must be bool or int64; convert them with .bool() or .long()");
    check_same_device(op, "the choices", choice, "x", x);
    check_shape(op, "the choices", choice, {num_rows()}, "one for each row of x");
    if (gate) {
      check_dtype(op, "gate", *gate, accumulate_type(dtype()));
      check_same_device(op, "gate", *gate, "x", x);
      check_shape(op, "gate", *gate, {num_rows()}, "one for each row of x");
    }
    const int64_t count = static_cast<int64_t>(widths.size());
    check(count >= 1 && count <= max_ffn_widths, op, ": widths has ", count, " entries, must have 1 to ",
          max_ffn_widths, "; round widths to fewer levels");
    for (int64_t i = 0; i < count; ++i) {
      check(widths[i] >= 0 && (i == 0 || widths[i] > widths[i - 1]), op, ": widths[", i, "] is ", widths[i],
            ", must be at least 0 and above the one before; sort them and leave out equal ones");
    }
    check(widths.back() > 0 && widths.back() <= intermediate, op, ": the largest width is ", widths.back(),
          ", must be in [1, ", intermediate, "] as the FFN has intermediate features; widths are prefixes");
  }
};

/// Arguments of gated_ffn, gated_ffn_inference and gated_ffn_backward.
struct GatedFfnArguments : GatedRowsArguments {
  Tensor gate_up_proj;
  std::optional<Tensor> gate_up_bias;
  Tensor down_proj;
  std::optional<Tensor> down_bias;
  int64_t given_capacity;

  int64_t intermediate() const { return down_proj.size(1); }
  /// Rows that may run; the others' saved products have room for all.
  int64_t capacity() const { return given_capacity < 0 ? num_rows() : given_capacity; }

  void check_all(const char* op) const {
    check_floating(op, "x", x);
    check_dim(op, "x", x, 2);
    check_branch(op, "gate_up_proj", gate_up_proj, "down_proj", down_proj, x, num_parts());
    check_rows(op, intermediate());
    check_operand(op, "gate_up_bias", gate_up_bias, x, {num_parts() * intermediate()}, "(features of gate_up_proj,)");
    check_operand(op, "down_bias", down_bias, x, {features()}, "(features of x,)");
    check(given_capacity >= -1 && given_capacity <= num_rows(), op, ": capacity is ", given_capacity,
          ", must be at most the ", num_rows(), " rows of x; pass None (-1) for room for all");
  }
  /// As check_all found them valid, with every tensor but the matrices in one row-major block.
  GatedFfnArguments with_contiguous_rows() const {
    GatedFfnArguments out = *this;
    out.make_rows_contiguous();
    out.gate_up_bias = as_contiguous(gate_up_bias);
    out.down_bias = as_contiguous(down_bias);
    return out;
  }
  template <class T>
  GatedFfn<T> problem() const {
    GatedFfn<T> out = GatedRowsArguments::problem<T>(intermediate());
    out.ffn.gate_up = linear_of<T>(gate_up_proj, gate_up_bias);
    out.ffn.down = linear_of<T>(down_proj, down_bias);
    return out;
  }
};

/// The parameters of the gated_ffn ops after their own, and GatedFfnArguments from them.
#define ANABRANCH_GATED_FFN_PARAMETERS                                                                                \
  const Tensor &x, const Tensor &choice, const std::optional<Tensor>&gate, const std::optional<Tensor>&norm_weight,   \
      const std::optional<Tensor>&norm_bias, const Tensor &gate_up_proj, const std::optional<Tensor>&gate_up_bias,    \
      const Tensor &down_proj, const std::optional<Tensor>&down_bias, const std::optional<Tensor>&base,               \
      const std::optional<Tensor>&other_gate_up, const std::optional<Tensor>&other_down, std::vector<int64_t> widths, \
      int64_t capacity, int64_t norm, double eps, int64_t activation, bool gated, double scale, bool running_add_x,   \
      bool skipped_add_x, int64_t other_activation, bool other_gated, bool other_normed, double other_scale
#define ANABRANCH_GATED_FFN_ARGUMENTS \
  {{x,                                \
    choice,                           \
    gate,                             \
    norm_weight,                      \
    norm_bias,                        \
    base,                             \
    other_gate_up,                    \
    other_down,                       \
    widths,                           \
    norm,                             \
    eps,                              \
    activation,                       \
    gated,                            \
    scale,                            \
    running_add_x,                    \
    skipped_add_x,                    \
    other_activation,                 \
    other_gated,                      \
    other_normed,                     \
    other_scale},                     \
   gate_up_proj,                      \
   gate_up_bias,                      \
   down_proj,                         \
   down_bias,                         \
   capacity}

}  // namespace anabranch
