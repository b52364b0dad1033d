// The gated FFN's forward on the GPU, in three launches; the host reads nothing and its grids depend on sizes alone.
//
// 1. group_rows.cuh: which rows run, their norm, and y of rows that skip.
// 2. gate_up, 3. down with the residual, of rows that run (branch.cuh). Two more where rows that skip have weights of
//    their own, and one more for the cosine.
//
// FLOPs: the definition's, rows rounded up to whole tiles per group. Bytes: the matrices' first max(width) features, x
// once or, with a norm, three times, hidden twice, y. Floor: the larger of these over what the GPU can do. Away from
// the floor: with one row tile, features / 256 blocks read all of `down` on Hopper (16 at 4096 features, of 132
// multiprocessors), features / 64 elsewhere; splitting the sum over more blocks would need a fourth launch.
#pragma once

#include "anabranch/skip/branch.cuh"
#include "anabranch/skip/group_rows.cuh"

namespace anabranch {

/// What is not needed may be null. Each part starts at a multiple of 16 bytes.
template <class T>
struct GatedFfnScratch {
  int32_t* tables;          // gated_ffn_tables(widths)
  accumulate_t<T>* scales;  // [num_rows]
  T* normed;                // [num_rows, features], if a branch is normed
  T* hidden;                // [capacity, ffn.intermediate]
  T* other_hidden;          // [num_rows, other.intermediate]
  accumulate_t<T>* dots;    // gated_ffn_dots(features, capacity), for cosine
};

/// int32 elements of GatedFfnScratch::tables.
inline int64_t gated_ffn_tables(const FfnWidths& widths) { return detail::GroupTables::size(widths.num_groups()); }
inline int64_t gated_ffn_dots(int64_t features, int64_t capacity) {
  return (features + detail::kGemmTile - 1) / detail::kGemmTile * 3 * capacity;
}

namespace detail {

/// Both branches of a gated FFN and the schedule of their rows.
template <class T>
struct GatedFfnBranches {
  BranchProblem<T> ffn, other;
  GroupTables tables;

  GatedFfnBranches(const GatedFfn<T>& problem, int64_t capacity, const RowGroups& groups, int32_t* table_memory,
                   const T* normed, const accumulate_t<T>* scales, int multiprocessors)
      : tables(problem.widths.num_groups(), table_memory, 0, 0) {
    if (!rows_are_aligned<T>(problem.features, {problem.x, problem.base})) multiprocessors = 0;
    const auto branch = [&](const FfnBranch<T>& given, int64_t num_entries, const int32_t* offsets, int64_t count) {
      auto made = branch_problem(as_shared(given, problem.features), problem.x, normed, groups.item_ids,
                                 problem.num_rows, num_entries, problem.features, offsets, count, multiprocessors);
      made.ffn.weights = scales;
      made.ffn.shared = true;
      return made;
    };
    ffn = branch(problem.ffn, capacity, groups.offsets, tables.num_groups);
    ffn.ffn.widths = tables.widths;
    other = branch(problem.other, problem.num_rows, groups.offsets + tables.num_groups, 1);
    tables.tile_rows = ffn.tile_rows();
    tables.other_tile_rows = other.tile_rows();
  }
  RowTiles ffn_tiles() const { return ffn.tiles(tables.tile_offsets); }
  RowTiles other_tiles() const { return other.tiles(tables.other_tile_offsets); }
};

/// y and cosine of rows that skip; y is left to the other branch if that has weights.
template <class T>
struct SkippedRows {
  const T *x, *base;
  int64_t features;
  T* y;                     // or null
  accumulate_t<T>* cosine;  // or null

  template <int N>
  __device__ void operator()(int64_t item, bool runs, int lane) const {
    using Sum = accumulate_t<T>;
    if (runs) return;
    if (cosine && lane == 0) cosine[item] = 1;
    if (!y) return;
    for_each_piece<N>(features, lane, [&](int64_t column) {
      const int64_t at = item * features + column;
      Vector<T, N> from{}, other{};
      if (x) from = Vector<T, N>::load(x + at);
      if (base) other = Vector<T, N>::load(base + at);
      if (x && base) {
        for (int k = 0; k < N; ++k)
          from.values[k] = T(static_cast<Sum>(from.values[k]) + static_cast<Sum>(other.values[k]));
      } else if (base) {
        from = other;
      }
      from.store(y + at);
    });
  }
};

}  // namespace detail

/// gated_ffn_reference, up to rounding. Rows beyond `capacity` that run skip instead; capacity <= num_rows. Writes
/// y [num_rows, features]; cosine [num_rows] if not null; the groups; and, if not null, the first products' outputs,
/// pre_activation [capacity, parts * ffn.intermediate] and other_pre_activation [num_rows, parts * other.intermediate],
/// by entry. multiprocessors: of a Hopper GPU, else 0.
template <class T>
void gated_ffn_cuda(const GatedFfn<T>& problem, int64_t capacity, const GatedFfnScratch<T>& scratch,
                    const RowGroups& groups, T* y, accumulate_t<T>* cosine, T* pre_activation, T* other_pre_activation,
                    int multiprocessors, cudaStream_t stream) {
  const detail::GatedFfnBranches<T> branches(problem, capacity, groups, scratch.tables, scratch.normed, scratch.scales,
                                             multiprocessors);
  const detail::SkippedRows<T> skipped{problem.skipped_add_x ? problem.x : nullptr, problem.base, problem.features,
                                       problem.other.intermediate > 0 ? nullptr : y, cosine};
  detail::group_rows_cuda<T>({problem, capacity, 0, groups, branches.tables, scratch.scales, scratch.normed}, {y},
                             skipped, stream);
  detail::ResidualStore<T> to{};
  to.x = problem.running_add_x || cosine ? problem.x : nullptr;
  to.item_ids = groups.item_ids;
  to.scales = scratch.scales;
  to.adds_x = problem.running_add_x;
  to.y = y;
  to.dots = cosine ? scratch.dots : nullptr;
  to.num_entries = capacity;
  detail::branch_forward_cuda(branches.ffn, branches.ffn_tiles(), to, scratch.hidden, pre_activation, stream);
  if (cosine && !branches.ffn.is_empty()) {
    detail::cosine_cuda(to, branches.ffn.dot_parts(), groups.offsets + branches.tables.num_groups, cosine, stream);
  }
  to.x = problem.skipped_add_x ? problem.x : nullptr;
  to.adds_x = problem.skipped_add_x;
  to.base = problem.base;
  to.dots = nullptr;
  detail::branch_forward_cuda(branches.other, branches.other_tiles(), to, scratch.other_hidden, other_pre_activation,
                              stream);
}

}  // namespace anabranch
