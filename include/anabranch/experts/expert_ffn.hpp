// The expert FFN: every item through the experts its plan names. What it computes, and its plain-loop definition.
//
//   y[t] = sum over entries e of item t, ascending, of weights[e] * f_g(x[t]),   g the group of e
//   f_g(x) = down[g] @ (act(gate[g] @ x + gate_bias[g]) * (up[g] @ x + up_bias[g])) + down_bias[g]
//
// Without `gated` there is no up half. Groups [0, num_experts) are experts; the next num_zero groups give 0 and the
// next num_identity groups give x itself, both without a product. Expert g may use only a prefix of widths[g] of its
// intermediate features. FLOPs: (gated ? 6 : 4) * entries * in * intermediate forward (out = in), twice that backward.
// Bytes: the matrices of each expert that has entries once, x and y once, and what lies between per entry.
#pragma once

#include <cstdint>
#include <vector>

#include "anabranch/core/scalar.hpp"
#include "anabranch/experts/activation.hpp"

namespace anabranch {

/// Weights of all experts, [num_experts, features out, features in] with any strides, and a contiguous bias or null.
template <class T>
struct ExpertLinear {
  T* weight;
  int64_t expert_stride, out_stride, in_stride;
  T* bias;  // [num_experts, features out]
};

template <class T>
struct ExpertFfn {
  const T* x;                     // [num_items, in_features]
  ExpertLinear<const T> gate_up;  // features out: intermediate, twice that if gated
  ExpertLinear<const T> down;
  const int32_t* group_offsets;    // the plan, of num_experts + num_zero + num_identity groups
  const int32_t* item_ids;         // or null: entry e reads row e of x
  const accumulate_t<T>* weights;  // [capacity] or null for 1
  const int32_t* item_offsets;     // the plan by item
  const int32_t* entry_ids;
  const int32_t* widths;  // [num_experts] or null for intermediate
  int64_t num_items, num_experts, num_zero, num_identity;
  int64_t in_features, intermediate, out_features;
  Activation activation;
  bool gated, interleaved;  // interleaved: gate and up features alternate, else gate comes first
  bool shared = false;      // every group is expert 0, and groups differ in width alone

  ANABRANCH_HOST_DEVICE int64_t num_groups() const { return num_experts + num_zero + num_identity; }
  ANABRANCH_HOST_DEVICE bool is_identity(int64_t group) const { return group >= num_experts + num_zero; }
  int64_t width(int64_t expert) const { return widths ? widths[expert] : intermediate; }
  /// Whose weights and biases group g uses.
  ANABRANCH_HOST_DEVICE int64_t expert(int64_t group) const { return shared ? 0 : group; }
  int64_t num_matrices() const { return shared ? 1 : num_experts; }
  ANABRANCH_HOST_DEVICE int64_t item(int64_t entry) const { return item_ids ? item_ids[entry] : entry; }
  ANABRANCH_HOST_DEVICE int64_t num_parts() const { return gated ? 2 : 1; }
  /// Row of gate_up that holds feature j of the gate (part 0) or up (part 1) half.
  ANABRANCH_HOST_DEVICE int64_t gate_up_row(int64_t part, int64_t j) const {
    return gated && interleaved ? 2 * j + part : part * intermediate + j;
  }
};

/// Gradients to write; null where not wanted. The expert ones have the strides of what they are the gradient of.
template <class T>
struct ExpertFfnGradients {
  T* x;  // [num_items, in_features]
  ExpertLinear<T> gate_up, down;
  accumulate_t<T>* weights;  // [capacity]
  const bool* frozen;        // [num_experts] or null: experts whose weight gradients are left zero
};

/// Writes y [num_items, out_features], and the first product's output if `pre_activation` is not null:
/// [capacity, parts * intermediate], gate half first, columns beyond an expert's width and rows of no expert untouched.
template <class T>
void expert_ffn_reference(const ExpertFfn<T>& ffn, T* y, T* pre_activation) {
  using Sum = accumulate_t<T>;
  std::vector<Sum> sums(ffn.num_items * ffn.out_features, 0), hidden(ffn.intermediate);
  for (int64_t g = 0; g < ffn.num_groups(); ++g) {
    for (int64_t e = ffn.group_offsets[g]; e < ffn.group_offsets[g + 1]; ++e) {
      const int64_t t = ffn.item(e);
      const T* x = ffn.x + t * ffn.in_features;
      Sum* sum = sums.data() + t * ffn.out_features;
      const Sum weight = ffn.weights ? ffn.weights[e] : Sum(1);
      if (g >= ffn.num_experts) {
        for (int64_t o = 0; ffn.is_identity(g) && o < ffn.out_features; ++o) sum[o] += weight * static_cast<Sum>(x[o]);
        continue;
      }
      for (int64_t j = 0; j < ffn.width(g); ++j) {
        Sum half[2] = {};
        for (int64_t part = 0; part < ffn.num_parts(); ++part) {
          const int64_t row = ffn.gate_up_row(part, j);
          const T* w = ffn.gate_up.weight + ffn.expert(g) * ffn.gate_up.expert_stride + row * ffn.gate_up.out_stride;
          for (int64_t i = 0; i < ffn.in_features; ++i) {
            half[part] += static_cast<Sum>(w[i * ffn.gate_up.in_stride]) * static_cast<Sum>(x[i]);
          }
          if (ffn.gate_up.bias) {
            half[part] += static_cast<Sum>(ffn.gate_up.bias[ffn.expert(g) * ffn.num_parts() * ffn.intermediate + row]);
          }
          if (pre_activation) pre_activation[(e * ffn.num_parts() + part) * ffn.intermediate + j] = T(half[part]);
        }
        hidden[j] = activate(ffn.activation, half[0]).value * (ffn.gated ? half[1] : Sum(1));
      }
      for (int64_t o = 0; o < ffn.out_features; ++o) {
        Sum out = ffn.down.bias ? static_cast<Sum>(ffn.down.bias[ffn.expert(g) * ffn.out_features + o]) : Sum(0);
        const T* w = ffn.down.weight + ffn.expert(g) * ffn.down.expert_stride + o * ffn.down.out_stride;
        for (int64_t j = 0; j < ffn.width(g); ++j) out += static_cast<Sum>(w[j * ffn.down.in_stride]) * hidden[j];
        sum[o] += weight * out;
      }
    }
  }
  for (int64_t i = 0; i < ffn.num_items * ffn.out_features; ++i) y[i] = T(sums[i]);
}

}  // namespace anabranch
