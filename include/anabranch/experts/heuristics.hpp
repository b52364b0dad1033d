// Which Hopper kernel runs an expert FFN: every choice by size is made here and nowhere else.
#pragma once

#include <cstdint>

namespace anabranch {

/// Where rows of x are brought into entry order: by the product's own loads, or by a pass before it.
enum class GatherKind { in_kernel, copy };

struct ExpertFfnSm90Choice {
  int tile_rows;  // 64 or 128
  GatherKind gather;
};

/// capacity bounds the routed pairs; the host knows no more.
///
/// Rows: a tile of 128 reads the weights from L2 half as often, one of 64 pads less. At 128 rows per expert on average
/// (T = 2048, E = 128, top 8) 128-row tiles make 1.47 times the FLOPs, 64-row tiles 1.24 times, while the weights'
/// bytes bound the time; from about 256 rows the padding is below a quarter for both and reuse decides.
/// Gather: the copy writes and reads entries * in_features once more, 16 % at T = 32768; loading by id costs threads
/// instead of time as long as 128 of them keep up. No GPU has measured it yet.
inline ExpertFfnSm90Choice choose_expert_ffn_sm90(int64_t capacity, int64_t num_experts) {
  return {capacity < 256 * num_experts ? 64 : 128, GatherKind::in_kernel};
}

}  // namespace anabranch
