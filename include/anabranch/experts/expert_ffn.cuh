// The expert FFN's forward on any GPU, in four launches; the host knows capacities alone.
//
// 1. tile_schedule.cuh: group_offsets to row tiles of the experts.
// 2. gate_up: 64 rows of one expert, gathered through item_ids, by 32 gate features and their 32 up features (64
// without
//    gate) side by side in one tile, which becomes hidden in shared memory. pre_activation is written only if asked
//    for. Tiles behind an expert's width leave at once.
// 3. down: hidden times down[g] (its first width columns) plus bias, into sums [capacity, out_features].
// 4. combine.cuh: every item adds up its entries.
//
// Scratch: hidden in T, sums in accumulate_t<T>, for every place of the capacity, used or not. FLOPs: the definition's,
// rounded up to 64 rows per expert. Bytes: the touched matrices once per row tile; hidden and sums written and read
// once. Floor: the CUDA cores' multiply-adds from some 30 rows per expert on, the weights' bytes below.
//
// The host cannot look at the plan, so ids out of range count as rows of zeros, widths are clamped to [0,
// intermediate], and offsets out of range give wrong rows but touch nothing else.
#pragma once

#include "anabranch/experts/combine.cuh"
#include "anabranch/experts/expert_ffn.hpp"
#include "anabranch/experts/grouped_gemm.cuh"

namespace anabranch {

template <class T>
struct ExpertFfnScratch {
  int32_t* schedule;      // row_tiles_scratch(num_experts)
  T* hidden;              // [capacity, intermediate]
  accumulate_t<T>* sums;  // [capacity, out_features]
};

namespace detail {

/// How the two halves of gate_up lie: from feature j to j + 1 of one half, and from a gate feature to its up feature.
struct HalfStrides {
  int64_t feature, half;
  template <class T>
  static HalfStrides of(const ExpertFfn<T>& ffn, int64_t row_stride) {
    return {(ffn.gate_up_row(0, 1) - ffn.gate_up_row(0, 0)) * row_stride, ffn.gate_up_row(1, 0) * row_stride};
  }
};

template <class T>
__device__ int64_t expert_width(const ExpertFfn<T>& ffn, int64_t expert) {
  return width_within(ffn.widths, expert, ffn.intermediate);
}

/// `gate_up` has one line per column of the tile: gate and up features alternate if there are both.
template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    gate_up_kernel(ExpertFfn<T> ffn, RowTiles tiles, GemmLines<T> x, GemmLines<T> gate_up, T* hidden,
                   T* pre_activation) {
  using Sum = accumulate_t<T>;
  const int parts = ffn.gated ? 2 : 1, features = kGemmTile / parts;
  const int64_t inner = ffn.intermediate, feature_tiles = (inner + features - 1) / features, block = blockIdx.x;
  const RowTile rows = tiles.tile(block / feature_tiles);
  const int64_t first = block % feature_tiles * features;
  if (rows.group < 0) return;
  const int64_t width = expert_width(ffn, rows.group);
  if (first >= width) return;
  const int count = static_cast<int>(width - first < features ? width - first : features);
  GemmTile<T> tile;
  tile.add(x, rows.begin, rows.size(), gate_up.moved(ffn.expert(rows.group) * ffn.gate_up.expert_stride), first * parts,
           count * parts, ffn.in_features);
  const SharedArray<Sum> sums = tile.share();
  const T* bias = ffn.gate_up.bias ? ffn.gate_up.bias + ffn.expert(rows.group) * parts * inner : nullptr;
  for_each_tile_row(rows.size(), [&](int row, int lane) {
    const int64_t entry = rows.begin + row;
#pragma unroll 1
    for (int l = lane; l < count; l += 32) {
      const int64_t j = first + l;
      Sum half[2] = {0, 1};
      for (int part = 0; part < parts; ++part) {
        half[part] = sums[row * kGemmTile + l * parts + part];
        if (bias) half[part] += static_cast<Sum>(bias[ffn.gate_up_row(part, j)]);
        if (pre_activation) pre_activation[(entry * parts + part) * inner + j] = T(half[part]);
      }
      hidden[entry * inner + j] = T(activate(ffn.activation, half[0]).value * half[1]);
    }
  });
}

template <class T>
void gate_up_cuda(const ExpertFfn<T>& ffn, const RowTiles& tiles, T* hidden, T* pre_activation, cudaStream_t stream) {
  const int64_t features = kGemmTile / ffn.num_parts();
  const int64_t blocks = tiles.max_tiles * ((ffn.intermediate + features - 1) / features);
  if (blocks == 0) return;
  const auto strides = HalfStrides::of(ffn, ffn.gate_up.out_stride);
  const GemmLines<T> x{ffn.x, ffn.in_features, 1, ffn.item_ids, ffn.num_items};
  GemmLines<T> gate_up{ffn.gate_up.weight, strides.feature, ffn.gate_up.in_stride};
  gate_up.paired = ffn.gated;
  gate_up.pair_stride = strides.half;
  launch(gate_up_kernel<T>, grid_of(blocks), kGemmThreads, GemmTile<T>::shared_size(), stream, ffn, tiles, x, gate_up,
         hidden, pre_activation);
}

template <class T, class Store>
void down_cuda(const ExpertFfn<T>& ffn, const RowTiles& tiles, const T* hidden, const Store& store,
               cudaStream_t stream) {
  GroupedRows<T, Store> down{};
  down.tiles = tiles;
  down.a = {hidden, ffn.intermediate, 1};
  down.b = {ffn.down.weight, ffn.down.out_stride, ffn.down.in_stride};
  down.b_group_stride = ffn.expert(1) * ffn.down.expert_stride;
  down.bias_group_stride = ffn.expert(1) * ffn.out_features;
  down.bias = ffn.down.bias;
  down.widths = ffn.widths;
  down.k = ffn.intermediate;
  down.n = ffn.out_features;
  down.num_parts = 1;
  down.store = store;
  grouped_rows_cuda(down, stream);
}

}  // namespace detail

/// The combine of an FFN's plan; the caller says what is added up.
template <class T, class Row>
ExpertCombine<T, Row> expert_combine_of(const ExpertFfn<T>& ffn, int64_t capacity) {
  ExpertCombine<T, Row> combine{};
  combine.identity_weights = ffn.weights;
  combine.group_offsets = ffn.group_offsets;
  combine.item_offsets = ffn.item_offsets;
  combine.entry_ids = ffn.entry_ids;
  combine.num_experts = ffn.num_experts;
  combine.num_zero = ffn.num_zero;
  combine.num_groups = ffn.num_groups();
  combine.num_items = ffn.num_items;
  combine.capacity = capacity;
  return combine;
}

/// expert_ffn_reference, up to rounding. capacity: the size of item_ids.
template <class T>
void expert_ffn_cuda(const ExpertFfn<T>& ffn, int64_t capacity, const ExpertFfnScratch<T>& scratch, T* y,
                     T* pre_activation, cudaStream_t stream) {
  if (capacity > 0 && ffn.num_experts > 0) {
    const auto tiles = row_tiles_cuda(ffn.group_offsets, ffn.num_experts, capacity, detail::kGemmTile, false,
                                      scratch.schedule, stream);
    detail::gate_up_cuda(ffn, tiles, scratch.hidden, pre_activation, stream);
    detail::down_cuda(ffn, tiles, scratch.hidden, detail::PlainStore<accumulate_t<T>>{scratch.sums}, stream);
  }
  auto combine = expert_combine_of<T, accumulate_t<T>>(ffn, capacity);
  combine.rows = scratch.sums;
  combine.weights = ffn.weights;
  combine.identity_rows = ffn.x;
  combine.features = ffn.out_features;
  combine.out = y;
  expert_combine_cuda(combine, stream);
}

}  // namespace anabranch
