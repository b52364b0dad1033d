// The first launch of the gated FFN: rows sorted by group, the schedule of every later launch, the rows' norm, and all
// that happens to rows that skip without weights.
//
// A block has rows_per_block rows. To place them it counts the choices of all rows before and after its own, per group,
// 16 bytes a load: no scan, no block waits for another. A thread counts in its own column of shared memory; warp 0 then
// places 32 rows at a time, and a warp takes a row. There are at most 1024 blocks from 8192 rows on, so counting reads
// at most 1024 times the choices from L2: 64 MB of bool or 512 MB of int64 at 65536 rows, some 0.02 and 0.1 ms where
// the FFN of 4096 x 11008 takes 22 ms, and in proportion to the rows from there on: below 1 %.
//
// Rows of the groups that run beyond `capacity` skip: the host cannot look at how many there are. The sort is stable
// for them too. Bytes: x of normed rows read and their normalised form written; of rows that skip, x and base read and
// y written; 12 bytes of ids and scales a row. Shared memory: 1 KB per group. Floor: bytes / bandwidth.
#pragma once

#include <algorithm>

#include "anabranch/experts/tile_schedule.cuh"
#include "anabranch/skip/gated_ffn.hpp"
#include "anabranch/skip/row_norm.cuh"

namespace anabranch {

namespace detail {

/// Of G = num_groups() groups that run: what the later kernels ask, in one piece of memory.
struct GroupTables {
  int num_groups;
  int32_t* widths;              // [G]
  int32_t* prefixes;            // [G + 1, 2]: 0 and the number of rows in groups 0 .. g; 0 and 0
  int32_t* tile_offsets;        // [G + 1], of tiles with tile_rows rows
  int32_t* other_tile_offsets;  // [2], of the rows that skip
  int tile_rows, other_tile_rows;

  static int64_t size(int num_groups) { return 4 * int64_t{num_groups} + 5; }
  GroupTables(int num_groups_, int32_t* memory, int tile_rows_, int other_tile_rows_)
      : num_groups(num_groups_),
        widths(memory),
        prefixes(widths + num_groups),
        tile_offsets(prefixes + 2 * (num_groups + 1)),
        other_tile_offsets(tile_offsets + num_groups + 1),
        tile_rows(tile_rows_),
        other_tile_rows(other_tile_rows_) {}

  /// By one thread, from the offsets that it has written.
  __device__ void write(const FfnWidths& from, const int32_t* offsets) const {
    int32_t tiles = 0;
    for (int g = 0; g < num_groups; ++g) {
      widths[g] = from.width_of_group(g);
      prefixes[2 * g] = 0;
      prefixes[2 * g + 1] = offsets[g + 1];
      tile_offsets[g] = tiles;
      tiles += (offsets[g + 1] - offsets[g] + tile_rows - 1) / tile_rows;
    }
    prefixes[2 * num_groups] = prefixes[2 * num_groups + 1] = 0;
    tile_offsets[num_groups] = tiles;
    other_tile_offsets[0] = 0;
    other_tile_offsets[1] = (offsets[num_groups + 1] - offsets[num_groups] + other_tile_rows - 1) / other_tile_rows;
  }
};

template <class T>
struct GroupRows {
  GatedFfn<T> problem;
  int64_t capacity, rows_per_block;
  RowGroups groups;
  GroupTables tables;
  accumulate_t<T>* scales;  // [num_rows], by entry: what its row of the branch is multiplied by
  T* normed;                // [num_rows, features], by entry, of rows whose branch is normed; or null
};

inline constexpr int kGroupThreads = 256;

/// Adds one per row of [begin, end) that runs to the thread's column of `counts`, [num_groups, kGroupThreads].
template <class Choice>
__device__ void count_choices(const FfnWidths& widths, int64_t num_rows, int64_t begin, int64_t end,
                              const SharedArray<int32_t>& counts) {
  constexpr int kPiece = kVectorWidth<Choice>;
  const auto* choices = static_cast<const Choice*>(widths.choice);
  const bool aligned = reinterpret_cast<uintptr_t>(choices) % 16 == 0;
  const int num_groups = widths.num_groups(), thread = static_cast<int>(threadIdx.x);
  for (int64_t piece = begin / kPiece + thread; piece * kPiece < end; piece += kGroupThreads) {
    const int64_t first = piece * kPiece;
    Vector<Choice, kPiece> loaded{};
    if (aligned && first + kPiece <= num_rows) loaded = Vector<Choice, kPiece>::load(choices + first);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const int64_t row = first + i;
      if (row < begin || row >= end) continue;
      const bool is_loaded = aligned && first + kPiece <= num_rows;
      const int group = widths.group_of_choice(is_loaded ? loaded.values[i] : choices[row]);
      if (group == num_groups) continue;
      const int32_t count = counts[group * kGroupThreads + thread];
      counts[group * kGroupThreads + thread] = count + 1;
    }
  }
}

/// The first place of the block's rows in every group into `next`, [num_groups + 1]; block 0 writes the tables.
template <class T>
__device__ void find_places(const GroupRows<T>& rows, int64_t begin, const SharedArray<int32_t>& counts,
                            const SharedArray<int32_t>& before, const SharedArray<int32_t>& totals,
                            const SharedArray<int32_t>& next) {
  const FfnWidths& widths = rows.problem.widths;
  const int num_groups = widths.num_groups(), thread = static_cast<int>(threadIdx.x);
  const auto count = [&](int64_t first, int64_t last) {
    widths.choice_bytes == 1 ? count_choices<uint8_t>(widths, rows.problem.num_rows, first, last, counts)
                             : count_choices<int64_t>(widths, rows.problem.num_rows, first, last, counts);
    __syncthreads();
  };
  const auto add_columns = [&](const SharedArray<int32_t>& sums) {
    for (int g = thread / 32; g < num_groups; g += kGroupThreads / 32) {
      int32_t sum = 0;
      for (int column = thread % 32; column < kGroupThreads; column += 32) {
        const int32_t part = counts[g * kGroupThreads + column];
        sum += part;
      }
      sum = warp_sum(sum);
      if (thread % 32 == 0) sums[g] = sum;
    }
    __syncthreads();
  };
  for (int g = 0; g < num_groups; ++g) counts[g * kGroupThreads + thread] = 0;
  count(0, begin);
  add_columns(before);
  count(begin, rows.problem.num_rows);
  add_columns(totals);
  if (thread == 0) {
    int64_t start = 0, skipped = begin;
    if (blockIdx.x == 0) rows.groups.offsets[0] = 0;
    for (int g = 0; g < num_groups; ++g) {
      const int32_t earlier = before[g], total = totals[g];
      const int64_t place = start + earlier, ran = rows.capacity > start ? rows.capacity : start;
      next[g] = static_cast<int32_t>(place);
      skipped -= place < ran ? earlier : ran - start;
      start += total;
      if (blockIdx.x == 0)
        rows.groups.offsets[g + 1] = static_cast<int32_t>(start < rows.capacity ? start : rows.capacity);
    }
    next[num_groups] = static_cast<int32_t>((start < rows.capacity ? start : rows.capacity) + skipped);
    if (blockIdx.x == 0) {
      rows.groups.offsets[num_groups + 1] = static_cast<int32_t>(rows.problem.num_rows);
      rows.tables.write(widths, rows.groups.offsets);
    }
  }
  __syncthreads();
}

/// By one warp: the places of rows first .. first + 32, those before `end`; of one that skips, its complement.
template <class T>
__device__ void place_rows(const GroupRows<T>& rows, int64_t first, int64_t end, const SharedArray<int32_t>& next,
                           const SharedArray<int32_t>& places) {
  const int num_groups = rows.problem.widths.num_groups(), lane = static_cast<int>(threadIdx.x) % 32;
  const bool exists = first + lane < end;
  const int group = exists ? rows.problem.widths.group_of(first + lane) : -1;
  const unsigned same = __match_any_sync(kAllLanes, group), below = (1u << lane) - 1;
  const bool wants = exists && group < num_groups;
  const int32_t begin = next[wants ? group : num_groups], skip_begin = next[num_groups];
  const int32_t place = begin + __popc(same & below);
  const bool runs = wants && place < rows.capacity;
  const unsigned skipping = __ballot_sync(kAllLanes, exists && !runs);
  __syncwarp();
  if (wants && lane + 1 == __ffs(static_cast<int>(same))) next[group] = begin + __popc(same);
  if (lane == 0) next[num_groups] = skip_begin + __popc(skipping);
  places[lane] = runs ? place : ~(skip_begin + __popc(skipping & below));
  __syncwarp();
}

template <class T, int N, class EachRow>
__global__ void __launch_bounds__(kGroupThreads, 1) group_rows_kernel(GroupRows<T> rows, EachRow each_row) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const GatedFfn<T>& problem = rows.problem;
  const int num_groups = problem.widths.num_groups();
  const SharedArray<int32_t> counts = shared.take<int32_t>(num_groups * kGroupThreads);
  const SharedArray<int32_t> before = shared.take<int32_t>(max_ffn_widths);
  const SharedArray<int32_t> totals = shared.take<int32_t>(max_ffn_widths);
  const SharedArray<int32_t> next = shared.take<int32_t>(max_ffn_widths + 1);
  const SharedArray<int32_t> places = shared.take<int32_t>(32);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t begin = blockIdx.x * rows.rows_per_block, n = problem.features;
  const int64_t end = begin + rows.rows_per_block < problem.num_rows ? begin + rows.rows_per_block : problem.num_rows;
  find_places(rows, begin, counts, before, totals, next);
  for (int64_t first = begin; first < end; first += 32) {
    if (warp == 0) place_rows(rows, first, end, next, places);
    __syncthreads();
    for (int r = warp; r < 32 && first + r < end; r += kGroupThreads / 32) {
      const int32_t marked = places[r];
      const bool runs = marked >= 0;
      const int64_t item = first + r, entry = runs ? marked : ~marked;
      const FfnBranch<T>& branch = runs ? problem.ffn : problem.other;
      if (lane == 0) {
        rows.groups.item_ids[entry] = static_cast<int32_t>(item);
        rows.scales[entry] = branch.scale * (runs && problem.gate ? problem.gate[item] : Sum(1));
      }
      if (branch.intermediate > 0 && branch.normed)
        normalize_row<N>(problem.norm, n, problem.x + item * n, rows.normed + entry * n, lane);
      each_row.template operator()<N>(item, runs, lane);
    }
    __syncthreads();
  }
}

/// each_row(item, runs, lane) is called by all lanes of a warp; `pointers`: what it reads and writes in rows.
template <class T, class EachRow>
void group_rows_cuda(GroupRows<T> rows, std::initializer_list<const void*> pointers, const EachRow& each_row,
                     cudaStream_t stream) {
  const GatedFfn<T>& problem = rows.problem;
  rows.rows_per_block = std::max<int64_t>(8, (problem.num_rows + 8191) / 8192 * 8);
  const int64_t blocks = std::max<int64_t>(1, (problem.num_rows + rows.rows_per_block - 1) / rows.rows_per_block);
  const int num_groups = problem.widths.num_groups();
  const size_t bytes = shared_bytes<int32_t, int32_t, int32_t, int32_t, int32_t>(
      num_groups * kGroupThreads, max_ffn_widths, max_ffn_widths, max_ffn_widths + 1, 32);
  const bool wide = rows_are_aligned<T>(problem.features, pointers) &&
                    rows_are_aligned<T>(problem.features,
                                        {problem.x, problem.base, problem.norm.weight, problem.norm.bias, rows.normed});
  launch(wide ? group_rows_kernel<T, kVectorWidth<T>, EachRow> : group_rows_kernel<T, 1, EachRow>, grid_of(blocks),
         kGroupThreads, bytes, stream, rows, each_row);
}

}  // namespace detail

}  // namespace anabranch
