// Cutting the routed rows of all groups into tiles, and one worker's scratch; shared by the CPU kernels of this room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "anabranch/core/gemm_cpu.hpp"
#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"

namespace anabranch::detail {

/// Rows begin .. end of one group.
struct RowChunk {
  int64_t group, begin, end;
  int64_t size() const { return end - begin; }
};

/// A tile of the work on all chunks: block `block` of the columns of one chunk.
struct TilePlace {
  const RowChunk& chunk;
  int64_t block;
};

/// All non-empty groups below `num_groups`, in chunks of at most `max_rows` rows: large enough that packing a group's
/// matrix once per chunk is cheap beside the product, small enough that a tile of results stays in the L2 cache.
inline std::vector<RowChunk> row_chunks(const int32_t* offsets, int64_t num_groups, int64_t max_rows = 256) {
  std::vector<RowChunk> chunks;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t size = offsets[g + 1] - offsets[g];
    const int64_t count = (size + max_rows - 1) / max_rows;
    for (int64_t c = 0; c < count; ++c) {
      chunks.push_back({g, offsets[g] + size * c / count, offsets[g] + size * (c + 1) / count});
    }
  }
  return chunks;
}

/// A worker's GEMM workspace and a tile of sums. Kept by the thread between calls, because a fresh megabyte per call
/// costs more in page faults than a small product does in arithmetic. It never shrinks.
template <class Sum>
struct Scratch {
  void* workspace;
  Sum* tile;

  static Scratch of_this_thread(std::size_t tile_elements) {
    thread_local AlignedBytes bytes;
    thread_local std::size_t size = 0;
    const std::size_t needed = gemm_workspace_bytes + tile_elements * sizeof(Sum);
    if (needed > size) {
      bytes = aligned_bytes(needed);
      size = needed;
    }
    return {bytes.get(), reinterpret_cast<Sum*>(bytes.get() + gemm_workspace_bytes)};
  }
};

inline int64_t ceil_div(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

/// Workers for `flops` of GEMM: waking one costs microseconds, so each should get at least some of those in work.
inline int gemm_workers(int64_t flops) { return workers_for(flops, 1 << 18); }

}  // namespace anabranch::detail
