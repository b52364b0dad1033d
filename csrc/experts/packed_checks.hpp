// What packed weights must be, for every op that takes them.
#pragma once

#include "anabranch/experts/packed_experts.hpp"
#include "experts/checks.hpp"

namespace anabranch {

inline CpuIsa checked_isa(const char* op, int64_t isa) {
  check(isa >= 0 && isa <= static_cast<int64_t>(detected_cpu_isa()), op,
        ": the weights were packed for instruction set ", isa, ", must be at most ",
        static_cast<int64_t>(detected_cpu_isa()), " on this CPU; pack them here");
  return static_cast<CpuIsa>(isa);
}

/// Sizes of packed matrices are products of two of these, which must fit in int64; ids of features are int32.
inline void check_features(const char* op, const char* name, int64_t features) {
  check(features >= 1 && features < INT32_MAX / 2, op, ": ", name, " is ", features, ", must be in [1, 2^30 - 1)");
}

inline void check_packed(const char* op, const char* name, const Tensor& packed, const std::optional<Tensor>& scales,
                         const Tensor& x, const PackedLinearShape& shape, int64_t num_experts) {
  const bool integers = packed.scalar_type() == ScalarType::Char;
  check(packed.is_cpu() && packed.is_contiguous(), op, ": ", name, " is on ", device_string(packed),
        packed.is_contiguous() ? "" : " and not contiguous",
        ", must be contiguous and on the CPU; packed weights are for the CPU alone");
  if (!integers) check_dtype(op, name, packed, x.scalar_type());
  check(!integers || x.scalar_type() != ScalarType::Double, op, ": x is float64, must be float32, bfloat16 or float16",
        " with int8 weights; convert it, or pack in float64");
  check(packed.dim() == 2 && packed.size(0) == num_experts && packed.size(1) == shape.expert_elements(), op, ": ", name,
        " has shape ", shape_string(packed), ", must be (", num_experts, ", ", shape.expert_elements(),
        ") as pack_experts made it; pack the weights anew");
  check(integers == scales.has_value(), op, ": ", name, " is ", integers ? "int8" : "floating", ", must come ",
        integers ? "with" : "without", " scales");
  if (!scales) return;
  check_dtype(op, "scales", *scales, ScalarType::Float);
  check(scales->is_contiguous() && scales->numel() == num_experts * shape.parts * shape.out_features, op, ": ", name,
        "'s scales have shape ", shape_string(*scales), ", must be contiguous, ", num_experts, " * ",
        shape.parts * shape.out_features, ", one for each expert and feature; pack the weights anew");
}

}  // namespace anabranch
