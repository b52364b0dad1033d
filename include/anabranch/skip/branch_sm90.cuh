// A feed-forward branch on Hopper (branch.cuh): gated by silu, 16-bit elements, sums in float.
//
// The experts' Hopper kernels with another end: the down product's rows, still sums, are scaled and added to their
// residual, which a thread reads 16 bytes at a time and in the sums' own layout after an exchange within its quad. Rows
// of a tile lie anywhere in y, so they are stored by threads, 64 bytes of a row by a quad.
//
// Launches: 2 forward. Bytes, FLOPs, floor: expert_ffn_sm90.cuh's, without the rows in entry order and the combine.
#pragma once

#include "anabranch/experts/expert_ffn_sm90.cuh"
#include "anabranch/skip/branch.cuh"

namespace anabranch::detail {

/// Sums of a RowsProblem into a ResidualStore.
template <class T, class Shape_, int kParts, bool kBMnMajor>
struct ResidualRowsProblem : RowsProblem<T, Shape_, kParts, kBMnMajor> {
  using Shape = Shape_;
  ResidualStore<T> to;

  __device__ void store(const RowsTile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    const int lane = thread % 32;
    const int n = static_cast<int>(this->n);
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int row = fragment_row(thread, 2 * lower);
      const bool row_exists = row < tile.rows;
      const int entry = tile.begin + (row_exists ? row : 0);
      const int64_t at = to.item(entry) * n;
      const float scale = to.scale_of(entry);
      float xx = 0.0f, xy = 0.0f, yy = 0.0f;
#pragma unroll
      for (int first = 0; first < Shape::kColumns / 8; first += 4) {
        const int column = tile.column + 8 * (first + lane % 4);
        const bool exists = row_exists && column < n;
        uint32_t pairs[4] = {}, base[4] = {};
        if (to.x && exists) load_pairs(to.x + at + column, pairs);
        if (to.base && exists) load_pairs(to.base + at + column, base);
        quad_transpose(pairs);
        if (to.base) quad_transpose(base);
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int reg = 4 * (first + g) + 2 * lower;
          const bool column_exists = tile.column + 8 * (first + g) < n;
          if (this->bias && column_exists) {
            const T* bias = this->bias + int64_t{tile.group} * n + tile.column + fragment_column(lane, reg);
            sums[reg] += widen(bias[0]);
            sums[reg + 1] += widen(bias[1]);
          }
          const Pair x = unpack_pair<T>(pairs[g]), other = unpack_pair<T>(base[g]);
          pairs[g] = pack_pair<T>({(to.adds_x ? x.first : 0.0f) + other.first + scale * sums[reg],
                                   (to.adds_x ? x.second : 0.0f) + other.second + scale * sums[reg + 1]});
          if (to.dots) {  // columns that do not exist are zeros
            const Pair y = unpack_pair<T>(pairs[g]);
            xx += x.first * x.first + x.second * x.second;
            xy += x.first * y.first + x.second * y.second;
            yy += y.first * y.first + y.second * y.second;
          }
        }
        quad_transpose(pairs);
        if (exists) store_pairs(to.y + at + column, pairs);
      }
      if (to.dots) {
        for (float* sum : {&xx, &xy, &yy}) {
          *sum += __shfl_xor_sync(kAllLanes, *sum, 1);
          *sum += __shfl_xor_sync(kAllLanes, *sum, 2);
        }
        if (row_exists && lane % 4 == 0) to.store_dots(tile.column / Shape::kColumns, entry, xx, xy, yy);
      }
    }
  }
};

template <class T, class Shape>
void branch_forward_sm90_shape(const BranchProblem<T>& branch, const RowTiles& tiles, const ResidualStore<T>& to,
                               T* hidden, T* pre_activation, cudaStream_t stream) {
  const int64_t num_entries = branch.num_entries;
  // Rows that lie in entry order are a matrix for TMA.
  const auto gate_up =
      branch.ffn.item_ids ? gate_up_sm90<T, Shape, GatherKind::in_kernel> : gate_up_sm90<T, Shape, GatherKind::copy>;
  gate_up(branch.ffn, tiles, branch.ffn.x, num_entries, hidden, pre_activation, branch.multiprocessors, stream);
  ResidualRowsProblem<T, Shape, 1, false> down{};
  down.to = to;
  down_sm90(down, branch.ffn, tiles, hidden, num_entries, branch.multiprocessors, stream);
}

template <class T>
void branch_forward_sm90(const BranchProblem<T>& branch, const RowTiles& tiles, const ResidualStore<T>& to, T* hidden,
                         T* pre_activation, cudaStream_t stream) {
  const auto run =
      tiles.tile_rows == 64 ? branch_forward_sm90_shape<T, Sm90Flat> : branch_forward_sm90_shape<T, Sm90Tall>;
  run(branch, tiles, to, hidden, pre_activation, stream);
}

}  // namespace anabranch::detail
