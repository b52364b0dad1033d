// Grouped matrix products on the CPU: tiles of all groups, spread over all workers.
//
// Forward: a tile is a chunk of one group's rows by `tile_n` columns, so one group with many rows and many groups with
// few both fill the machine; tiles of one group share its matrix through the cache. dw: a tile is `tile_m` by `tile_n`
// of one group's gradient, summed over the group's rows in order by one worker, so there is nothing to reduce after.
#pragma once

#include <algorithm>

#include "anabranch/experts/grouped_mm.hpp"
#include "anabranch/experts/row_chunks.hpp"
#include "anabranch/experts/row_kernels.hpp"

namespace anabranch {

template <class T>
void grouped_mm_cpu(const GroupedMm<T>& problem) {
  using Sum = accumulate_t<T>;
  constexpr int64_t tile_n = 192;
  const auto& [x, w, w_group_stride, bias, offsets, num_groups, num_rows, k, n, out] = problem;
  const int64_t routed = offsets[num_groups];
  std::fill(out + routed * n, out + num_rows * n, T(0.0f));
  const auto chunks = detail::row_chunks(offsets, num_groups);
  const int64_t columns = detail::ceil_div(n, tile_n);
  const auto rows = row_kernels<T>();
  parallel_tiles(static_cast<int64_t>(chunks.size()) * columns, detail::gemm_workers(2 * routed * k * n),
                 [&](int64_t tile, int) {
                   const detail::RowChunk& chunk = chunks[tile / columns];
                   const int64_t first = tile % columns * tile_n, width = std::min(tile_n, n - first);
                   const auto scratch = detail::Scratch<Sum>::of_this_thread(256 * tile_n);
                   for (int64_t i = 0; bias && i < chunk.size(); ++i) {
                     std::fill(scratch.tile + i * width, scratch.tile + (i + 1) * width, Sum(0));
                     rows.add(width, Sum(1), bias + chunk.group * n + first, scratch.tile + i * width);
                   }
                   const GemmOperand<T> a{x.data + chunk.begin * x.row_stride, x.row_stride, x.column_stride};
                   const GemmOperand<T> b{w.data + chunk.group * w_group_stride + first * w.column_stride,
                                          w.column_stride, w.row_stride};
                   gemm(chunk.size(), width, k, a, b, scratch.tile, width, bias != nullptr, scratch.workspace);
                   for (int64_t i = 0; i < chunk.size(); ++i) {
                     rows.store(width, scratch.tile + i * width, out + (chunk.begin + i) * n + first);
                   }
                 });
}

template <class T>
void grouped_mm_dw_cpu(const GroupedMmDw<T>& problem) {
  using Sum = accumulate_t<T>;
  constexpr int64_t tile_m = 192, tile_n = 384;
  const auto& [x, dy, offsets, num_groups, k, n, dw] = problem;
  const int64_t tiles_m = detail::ceil_div(k, tile_m), tiles_n = detail::ceil_div(n, tile_n);
  const auto rows = row_kernels<T>();
  const int64_t work = 2 * k * n * (offsets[num_groups] + num_groups);
  parallel_tiles(num_groups * tiles_m * tiles_n, detail::gemm_workers(work), [&](int64_t tile, int) {
    const int64_t g = tile / (tiles_m * tiles_n);
    const int64_t first_m = tile / tiles_n % tiles_m * tile_m, size_m = std::min(tile_m, k - first_m);
    const int64_t first_n = tile % tiles_n * tile_n, size_n = std::min(tile_n, n - first_n);
    const int64_t begin = offsets[g], count = offsets[g + 1] - begin;
    const auto scratch = detail::Scratch<Sum>::of_this_thread(tile_m * tile_n);
    const GemmOperand<T> a{x.data + begin * x.row_stride + first_m * x.column_stride, x.column_stride, x.row_stride};
    const GemmOperand<T> b{dy.data + begin * dy.row_stride + first_n * dy.column_stride, dy.column_stride,
                           dy.row_stride};
    gemm(size_m, size_n, count, a, b, scratch.tile, size_n, false, scratch.workspace);
    for (int64_t i = 0; i < size_m; ++i) {
      rows.store(size_n, scratch.tile + i * size_n, dw + (g * k + first_m + i) * n + first_n);
    }
  });
}

}  // namespace anabranch
