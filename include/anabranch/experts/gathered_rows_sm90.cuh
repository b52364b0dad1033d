// Rows found by id, copied into a stage of the Hopper kernels by the 128 threads of the loading warpgroup.
//
// A thread copies piece thread % 8 (16 bytes) of the lines thread / 8, + 16, ...: eight threads read 128 bytes of a row
// at once, and a line's place in its swizzle period is the same for all lines of a thread. What does not exist, rows
// past the tile's and columns past the matrix, becomes zeros and is not read.
#pragma once

#include "anabranch/core/cp_async.cuh"
#include "anabranch/core/tma.cuh"

namespace anabranch::detail {

/// K-major A: kRows entries' rows, 64 columns for each depth block. Ids out of range count as rows that do not exist.
template <class T, int kRows>
class GatheredRows {
 public:
  __device__ GatheredRows(const int32_t* item_ids, int64_t num_items, int64_t first_entry, int rows, int thread)
      : line_(thread / 8), piece_(thread % 8) {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const int32_t item = line_ + 16 * i < rows ? item_ids[first_entry + line_ + 16 * i] : -1;
      items_[i] = item < num_items ? item : -1;
    }
  }

  __device__ void copy(const T* matrix, int64_t columns, int first_column, SharedAddress to) const {
    const int column = first_column + piece_ * 8;
    const SharedAddress destination = to + swizzled_offset(line_, piece_);
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const bool exists = items_[i] >= 0 && column < columns;
      cp_async_16(destination + i * 16 * 128, matrix + (exists ? items_[i] * columns + column : 0), exists);
    }
  }

 private:
  int line_, piece_;
  int32_t items_[kRows / 16];
};

/// MN-major operand: 64 entries' rows for each depth block, kBlocks x 64 of their columns.
template <class T, int kBlocks>
__device__ __forceinline__ void copy_k_rows(const T* matrix, int64_t stride, int64_t columns, int first_column,
                                            const int32_t (&rows)[4], int thread, SharedAddress to) {
  const int line = thread / 8, piece = thread % 8;
  const SharedAddress destination = to + swizzled_offset(line, piece);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int column = first_column + b * 64 + piece * 8;
      const bool exists = rows[i] >= 0 && column < columns;
      cp_async_16(destination + b * (64 * 128) + i * 16 * 128, matrix + (exists ? rows[i] * stride + column : 0),
                  exists);
    }
  }
}

}  // namespace anabranch::detail
