// Writing a batch to nodes on the GPU: one warp for each node that the batch names, and it sees its events in order.
//
// There is no sort. Every position of the batch gets a warp; the warp of a node's first position looks after the node
// and walks the batch from there, the others leave. n positions cost at most n^2 / 64 loads of 32 lanes, all from L2;
// up to some thousands that should be less than a sort's launches, an estimate that no GPU has confirmed. Batches are
// cut into launches of node_warp_chunk positions, one behind another on the stream; that changes nothing, because a
// launch continues what the one before left.
#pragma once

#include "anabranch/core/simt.cuh"
#include "anabranch/temporal/events.hpp"

namespace anabranch {

inline constexpr int64_t node_warp_chunk = 16384;

/// Whether no position in [begin, position) has the node. All lanes of a warp call it with the same arguments.
template <class NodeAt>
__device__ bool is_first_of_node(const NodeAt& node_at, int64_t begin, int64_t position, int64_t node) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t base = begin; base < position; base += 32) {
    const int64_t p = base + lane;
    if (__ballot_sync(kAllLanes, p < position && node_at(p) == node) != 0) return false;
  }
  return true;
}

/// Calls f(p) for every position p in [begin, end) that has the node, in order. All lanes of a warp call it with the
/// same arguments, and all call f.
template <class NodeAt, class F>
__device__ void for_each_of_node(const NodeAt& node_at, int64_t begin, int64_t end, int64_t node, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t base = begin; base < end; base += 32) {
    const int64_t p = base + lane;
    unsigned found = __ballot_sync(kAllLanes, p < end && node_at(p) == node);
    while (found != 0) {
      f(base + __ffs(static_cast<int>(found)) - 1);
      found &= found - 1;
    }
  }
}

}  // namespace anabranch
