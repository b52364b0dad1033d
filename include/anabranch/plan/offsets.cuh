// From an entry back to its group, on the GPU.
#pragma once

#include <cstdint>

#include "anabranch/core/simt.cuh"

namespace anabranch::detail {

/// The last g with group_offsets[g] <= entry: the group of an entry below group_offsets[num_groups]. log2(num_groups)
/// dependent loads, of which the first few are the same for all threads and stay in L1.
__device__ inline int32_t group_of_entry(const int32_t* group_offsets, int64_t num_groups, int64_t entry) {
  int64_t low = 0, high = num_groups;  // the answer lies in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (group_offsets[middle] <= entry ? low : high) = middle;
  }
  return static_cast<int32_t>(low);
}

}  // namespace anabranch::detail
