// Expert weights packed for the CPU: where each piece of them lies.
//
// An expert's gate_up is cut into blocks of 96 intermediate features, each one packed matrix (core/packed_gemm.hpp)
// with the block's gate columns before its up columns; its down into blocks of 192 output features. One block is what
// one tile of the forward reads, and blocks and experts follow each other in the order in which tiles run, so decoding
// reads memory front to back. int8 weights carry a scale per output feature: weight = scale * integer.
#pragma once

#include <algorithm>
#include <cstdint>

#include "anabranch/core/packed_gemm.hpp"
#include "anabranch/experts/expert_ffn.hpp"

namespace anabranch {

/// A packed matrix [out, in] per expert, cut into blocks of `block` output features; of `parts` halves, each cut alike.
struct PackedLinearShape {
  int64_t parts, out_features, in_features, block;

  int64_t num_blocks() const { return (out_features + block - 1) / block; }
  int64_t block_features(int64_t index) const { return std::min(block, out_features - index * block); }
  int64_t block_elements(int64_t index) const { return packed_bytes(parts * block_features(index), in_features, 1); }
  /// Elements from an expert's first to its given block; all blocks but the last are equal.
  int64_t block_offset(int64_t index) const { return index * packed_bytes(parts * block, in_features, 1); }
  int64_t expert_elements() const { return block_offset(num_blocks() - 1) + block_elements(num_blocks() - 1); }
};

inline constexpr int64_t packed_gate_up_features = 96;
inline constexpr int64_t packed_down_features = 192;

template <class T, class Stored>
struct PackedExperts {
  const Stored *gate_up, *down;
  const accumulate_t<T>* gate_up_scales;  // [num_experts, parts, intermediate], gate first; null unless int8
  const accumulate_t<T>* down_scales;     // [num_experts, out_features]
  CpuIsa isa;
};

inline PackedLinearShape packed_gate_up_shape(int64_t parts, int64_t intermediate, int64_t in_features) {
  return {parts, intermediate, in_features, packed_gate_up_features};
}
inline PackedLinearShape packed_down_shape(int64_t out_features, int64_t intermediate) {
  return {1, out_features, intermediate, packed_down_features};
}

}  // namespace anabranch
