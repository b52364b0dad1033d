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
/// Rows: both shapes pad a group to 64 rows, since a warpgroup without rows multiplies nothing, and 128-row tiles read
/// each weight tile from L2 once where 64-row ones read it twice. So 64 rows serve groups that rarely have more: below
/// 48 on average, where the fifth stage keeps more bytes of weights under way. At T = 2048 (E = 128, top 8, H = 2048,
/// I = 768: 128 rows per expert) 64-row tiles would move 3.7 GB from L2, 128-row ones 2.4 GB.
/// Gather: the copy writes and reads entries * in_features once more, 16 % at T = 32768; loading by id costs threads
/// instead of time as long as 128 of them keep up. So every size gets in_kernel; copy is built and tested beside it as
/// the other way to do it, to be measured on a GPU: none has measured either choice yet.
inline ExpertFfnSm90Choice choose_expert_ffn_sm90(int64_t capacity, int64_t num_experts) {
  return {capacity < 48 * num_experts ? 64 : 128, GatherKind::in_kernel};
}

}  // namespace anabranch
