// What a caller needs of the Hopper expert FFN: which problems it takes, its workspace and its two functions.
//
// The functions are instantiated for bfloat16 and half in csrc/experts/*_sm90.cu; their kernels are in
// expert_ffn_sm90.cuh and expert_ffn_backward_sm90.cuh. They read nothing back from the device and may be captured.
//
// Depth is multiplied 64 at a time, so weights from an expert's width to the next multiple of 64 meet zeros: those
// columns of down and, in the backward, those gate and up rows must be finite, or 0 * NaN reaches results. Weights that
// lie farther are never used, whatever they are. The portable kernels read none beyond a width.
#pragma once

#include "anabranch/core/simt.cuh"
#include "anabranch/experts/expert_ffn_backward.hpp"
#include "anabranch/experts/grouped_mm_sm90.hpp"
#include "anabranch/experts/heuristics.hpp"

namespace anabranch {

/// Each part starts at a multiple of 16 bytes.
template <class T>
struct ExpertFfnSm90Workspace {
  int32_t* schedule;  // row_tiles_scratch(num_experts)
  T* hidden;          // [capacity, intermediate]
  T* rows;            // [capacity, out_features]
  T* x;               // [capacity, in_features] where choose_expert_ffn_sm90 says GatherKind::copy, or null
};

/// The same; what is null belongs to gradients that are not wanted.
template <class T>
struct ExpertFfnBackwardSm90Workspace {
  int32_t* schedule;
  T* weighted_hidden;   // [capacity, intermediate], for down.weight
  T* dpre_activation;   // [capacity, 2, intermediate], always
  float* partial_dots;  // [expert_ffn_dot_parts(intermediate), capacity], for weights
  T* rows;              // [capacity, in_features], for x
};

/// True if the kernels take this problem: gated by silu, matrices contiguous along their inputs as they are stored by
/// default, all extents, strides and addresses multiples of 8 elements, as 16-byte copies need, and nothing empty.
template <class T>
bool expert_ffn_sm90_takes(const ExpertFfn<T>& ffn, int64_t capacity) {
  const auto suits = [&](const ExpertLinear<const T>& linear) {
    return linear.in_stride == 1 && detail::in_eights(linear.weight, linear.out_stride, linear.expert_stride);
  };
  return detail::is_16_bit<T> && ffn.gated && ffn.activation == Activation::silu && capacity > 0 &&
         ffn.num_experts > 0 && ffn.num_items > 0 && suits(ffn.gate_up) && suits(ffn.down) &&
         detail::in_eights(ffn.x, ffn.in_features, ffn.intermediate, ffn.out_features);
}

/// True if the backward can write these gradients: they lie along their inputs too, in multiples of 8 elements. They
/// are laid out anew from their shapes, so a transposed matrix that the forward takes as it lies may have one that does
/// not.
template <class T>
bool expert_ffn_sm90_writes(const ExpertFfnGradients<T>& gradients) {
  const auto suits = [](const ExpertLinear<T>& linear) {
    return !linear.weight ||
           (linear.in_stride == 1 && detail::in_eights<T>(linear.weight, linear.out_stride, linear.expert_stride));
  };
  return suits(gradients.gate_up) && suits(gradients.down);
}

/// expert_ffn_reference, up to rounding, for a problem that expert_ffn_sm90_takes, on a device of capability 9.0. y and
/// pre_activation (or null) start at multiples of 16 bytes. multiprocessors: how many blocks run at once.
template <class T>
void expert_ffn_sm90(const ExpertFfn<T>& ffn, int64_t capacity, const ExpertFfnSm90Workspace<T>& workspace, T* y,
                     T* pre_activation, int multiprocessors, cudaStream_t stream);

/// expert_ffn_backward_reference, up to rounding, under the same conditions, into gradients that
/// expert_ffn_sm90_writes. dweights past the plan's end is zero.
template <class T>
void expert_ffn_backward_sm90(const ExpertFfn<T>& ffn, int64_t capacity, const T* dy, const T* pre_activation,
                              const ExpertFfnBackwardSm90Workspace<T>& workspace,
                              const ExpertFfnGradients<T>& gradients, int multiprocessors, cudaStream_t stream);

}  // namespace anabranch
