// The expert FFN's forward on Hopper: gated by silu, 16-bit elements, sums in float.
//
// 1. Tiles of rows are scheduled on the device (tile_schedule.cuh).
// 2. hidden [capacity, intermediate] = silu(x gate^T) * (x up^T): a tile's B holds 128 gate rows above the 128 up rows
//    of the same features, so both sums of a feature lie in one thread. A is gathered by item id while loading
//    (GatherKind::in_kernel), or from a copy in entry order that a pass before it made, by TMA (GatherKind::copy).
// 3. rows [capacity, out_features] = hidden down^T (+ bias), rounded to T: half the bytes of float, which at many rows
//    cost more than the rounding is worth.
// 4. Every item adds up its entries' rows in float (combine.cuh).
//
// Which problems it takes: expert_ffn_sm90.hpp. Launches: 4, or 5 with the copy. FLOPs: 6 * entries * in *
// intermediate, rounded up to whole tiles of rows. Bytes: the touched experts' matrices, x, hidden twice, rows twice,
// y. Floor: at most 16 rows a multiprocessor and expert, matrices / bandwidth; with many, FLOPs / peak. Budgets:
// grouped_gemm_sm90.cuh.
//
// Ids and offsets out of range count as rows that do not exist. Columns of hidden from an expert's width to the next
// multiple of 128 are zero, those beyond are neither written nor read.
#pragma once

#include "anabranch/experts/expert_ffn.cuh"
#include "anabranch/experts/expert_ffn_sm90.hpp"
#include "anabranch/experts/gathered_rows_sm90.cuh"
#include "anabranch/experts/heuristics.hpp"
#include "anabranch/experts/rows_sm90.cuh"
#include "anabranch/plan/rows.cuh"

namespace anabranch {

namespace detail {

/// Product 1 and its epilogue.
template <class T, class Shape_, GatherKind kGather>
struct GateUpProblem {
  using Element = T;
  using Shape = Shape_;
  using Tile = RowsTile;
  static constexpr int kFeatures = Shape::kColumns / 2;
  static constexpr bool kAMnMajor = false, kBMnMajor = false, kThreadsLoad = kGather == GatherKind::in_kernel;
  static constexpr bool kBoxes = true;

  TensorMap x_map;       // GatherKind::copy: [capacity, in_features], boxes of 64
  TensorMap gate_up[2];  // [num_experts, intermediate, in_features], boxes of kFeatures
  RowTiles tiles;
  const T* x;
  const int32_t* item_ids;
  const int32_t* widths;
  const T* bias;
  int64_t num_items, in_features, intermediate;
  bool interleaved, shared;  // shared: all groups have matrix and bias 0
  T* hidden;
  T* pre_activation;  // or null

  __device__ int column_tiles() const { return static_cast<int>((intermediate + kFeatures - 1) / kFeatures); }
  __device__ int64_t num_tiles() const { return scheduled_tiles(tiles) * column_tiles(); }
  __device__ Tile tile(int64_t index) const {
    Tile tile = rows_tile(tiles, index, column_tiles(), kFeatures);
    tile.width = static_cast<int>(width_within(widths, tile.group, intermediate));
    tile.depth_blocks = tile.column < tile.width ? blocks_of_64(in_features) : 0;
    if (shared) tile.group = 0;
    return tile;
  }

  __device__ uint32_t box_bytes(const Tile& tile) const {
    return Shape::kBytesB + (kThreadsLoad ? 0 : blocks_of_64(tile.rows) * kBlockBytes);
  }
  __device__ void load_boxes(const Tile& tile, int block, SharedAddress a, SharedAddress b,
                             SharedAddress barrier) const {
    if constexpr (!kThreadsLoad) load_rows(tile, x_map, block * 64, a, barrier);
    tma_load(b, gate_up[0], block * 64, tile.column, tile.group, barrier);
    tma_load(b + kFeatures * 128, gate_up[1], block * 64, tile.column, tile.group, barrier);
  }

  struct RowLoader {
    GatheredRows<T, Shape::kRows> rows;
    __device__ RowLoader(const GateUpProblem& problem, const Tile& tile, int thread)
        : rows(problem.item_ids, problem.num_items, tile.begin, tile.rows, thread) {}
    __device__ void copy(const GateUpProblem& problem, const Tile&, int block, SharedAddress a, SharedAddress) const {
      rows.copy(problem.x, problem.in_features, block * 64, a);
    }
  };

  /// Apart, so that without bias nothing of it is left in the epilogue. Features past the last are not stored.
  __device__ void add_bias(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    const T* gate_bias = bias + int64_t{tile.group} * 2 * intermediate;
    const T* up_bias = gate_bias + (interleaved ? 1 : intermediate);
#pragma unroll
    for (int reg = 0; reg < kFeatures / 2; ++reg) {
      if (reg % 16 == 0) __syncwarp();  // no more loads under way than there are registers to hold them
      const int64_t feature = tile.column + fragment_column(thread, reg);
      const int64_t at = (feature < intermediate ? feature : 0) * (interleaved ? 2 : 1);
      sums[reg] += widen(gate_bias[at]);
      sums[reg + kFeatures / 2] += widen(up_bias[at]);
    }
  }

  __device__ void store(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    if (tile.column >= tile.width) return;
    if (bias) add_bias(tile, sums, thread);
    const int lane = thread % 32;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int row = fragment_row(thread, 2 * lower);
      const int64_t entry = tile.begin + row;
#pragma unroll
      for (int first = 0; first < kFeatures / 8; first += 4) {
        uint32_t gates[4], ups[4], products[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int reg = 4 * (first + g) + 2 * lower;
          const Pair gate{sums[reg], sums[reg + 1]};
          const Pair up{sums[reg + kFeatures / 2], sums[reg + kFeatures / 2 + 1]};
          gates[g] = pack_pair<T>(gate);
          ups[g] = pack_pair<T>(up);
          products[g] = pack_pair<T>(
              {gate.first * fast_sigmoid(gate.first) * up.first, gate.second * fast_sigmoid(gate.second) * up.second});
        }
        quad_transpose(products);
        const int64_t column = tile.column + 8 * (first + lane % 4);
        const bool exists = row < tile.rows && column < intermediate;
        if (column + 8 > tile.width) keep_first(products, tile.width - static_cast<int>(column));
        if (exists) store_pairs(hidden + entry * intermediate + column, products);
        if (pre_activation) {
          quad_transpose(gates);
          quad_transpose(ups);
          if (exists && column < tile.width) {
            store_pairs(pre_activation + entry * 2 * intermediate + column, gates);
            store_pairs(pre_activation + (entry * 2 + 1) * intermediate + column, ups);
          }
        }
      }
    }
  }
};

/// The maps of a gate and an up half: rows gate_up_row(part, 0), gate_up_row(part, 1), ... of every expert.
template <class T>
TensorMap gate_up_map(const ExpertFfn<T>& ffn, int part, int box_lines) {
  const int64_t stride = ffn.gate_up.out_stride;
  return make_tensor_map(TensorView<T>{ffn.gate_up.weight + ffn.gate_up_row(part, 0) * stride, ffn.in_features,
                                       ffn.intermediate, ffn.num_matrices(), ffn.interleaved ? 2 * stride : stride,
                                       ffn.gate_up.expert_stride, box_lines});
}

/// [num_experts, out_features, intermediate].
template <class T>
TensorMap down_map(const ExpertFfn<T>& ffn, int box_lines) {
  return make_tensor_map(TensorView<T>{ffn.down.weight, ffn.intermediate, ffn.out_features, ffn.num_matrices(),
                                       ffn.down.out_stride, ffn.down.expert_stride, box_lines});
}

/// Product 1. GatherKind::copy: `rows` are those of x in entry order, with at least num_entries of them.
template <class T, class Shape, GatherKind kGather>
void gate_up_sm90(const ExpertFfn<T>& ffn, const RowTiles& tiles, const T* rows, int64_t num_entries, T* hidden,
                  T* pre_activation, int multiprocessors, cudaStream_t stream) {
  using Problem = GateUpProblem<T, Shape, kGather>;
  Problem problem{};
  if constexpr (kGather == GatherKind::copy)
    problem.x_map = entry_map<T>(rows, num_entries, ffn.in_features, ffn.in_features);
  for (int part = 0; part < 2; ++part) problem.gate_up[part] = gate_up_map(ffn, part, Problem::kFeatures);
  problem.tiles = tiles;
  problem.x = ffn.x;
  problem.item_ids = ffn.item_ids;
  problem.widths = ffn.widths;
  problem.bias = ffn.gate_up.bias;
  problem.num_items = ffn.num_items;
  problem.in_features = ffn.in_features;
  problem.intermediate = ffn.intermediate;
  problem.interleaved = ffn.interleaved;
  problem.shared = ffn.shared;
  problem.hidden = hidden;
  problem.pre_activation = pre_activation;
  launch_grouped_gemm_sm90(problem, tiles.max_tiles * column_tiles<Problem::kFeatures>(ffn.intermediate),
                           multiprocessors, stream);
}

/// The down product, by Problem: RowsProblem or one that stores otherwise, in which the caller has set where.
template <class Problem, class T>
void down_sm90(Problem down, const ExpertFfn<T>& ffn, const RowTiles& tiles, const T* hidden, int64_t num_entries,
               int multiprocessors, cudaStream_t stream) {
  constexpr int kColumns = Problem::Shape::kColumns;
  down.a[0] = entry_map<T>(hidden, num_entries, ffn.intermediate, ffn.intermediate);
  down.b[0] = down_map(ffn, kColumns);
  down.tiles = tiles;
  down.widths = ffn.widths;
  down.bias = ffn.down.bias;
  down.depth = ffn.intermediate;
  down.n = ffn.out_features;
  down.shared = ffn.shared;
  launch_grouped_gemm_sm90(down, tiles.max_tiles * column_tiles<kColumns>(ffn.out_features), multiprocessors, stream);
}

template <class T, class Shape>
void expert_ffn_sm90_forward(const ExpertFfn<T>& ffn, int64_t capacity, GatherKind gather, T* y, T* pre_activation,
                             const ExpertFfnSm90Workspace<T>& workspace, int multiprocessors, cudaStream_t stream) {
  const RowTiles tiles =
      row_tiles_cuda(ffn.group_offsets, ffn.num_experts, capacity, Shape::kRows, false, workspace.schedule, stream);
  if (gather == GatherKind::copy) {
    gather_cuda<T>(ffn.x, nullptr, ffn.item_ids, ffn.group_offsets + ffn.num_experts, ffn.num_items, capacity,
                   ffn.in_features, workspace.x, stream);
  }
  const auto gate_up = gather == GatherKind::copy ? gate_up_sm90<T, Shape, GatherKind::copy>
                                                  : gate_up_sm90<T, Shape, GatherKind::in_kernel>;
  gate_up(ffn, tiles, workspace.x, capacity, workspace.hidden, pre_activation, multiprocessors, stream);
  RowsProblem<T, Shape, 1, false> down{};
  down.out = workspace.rows;
  down_sm90(down, ffn, tiles, workspace.hidden, capacity, multiprocessors, stream);
  auto combine = expert_combine_of<T, T>(ffn, capacity);
  combine.rows = workspace.rows;
  combine.weights = ffn.weights;
  combine.identity_rows = ffn.x;
  combine.features = ffn.out_features;
  combine.out = y;
  expert_combine_cuda(combine, stream);
}

}  // namespace detail

template <class T>
void expert_ffn_sm90(const ExpertFfn<T>& ffn, int64_t capacity, const ExpertFfnSm90Workspace<T>& workspace, T* y,
                     T* pre_activation, int multiprocessors, cudaStream_t stream) {
  const auto [tile_rows, gather] = choose_expert_ffn_sm90(capacity, ffn.num_experts);
  const auto run = tile_rows == 64 ? detail::expert_ffn_sm90_forward<T, detail::Sm90Flat>
                                   : detail::expert_ffn_sm90_forward<T, detail::Sm90Tall>;
  run(ffn, capacity, gather, y, pre_activation, workspace, multiprocessors, stream);
}

}  // namespace anabranch
