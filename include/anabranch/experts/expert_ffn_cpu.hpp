// The expert FFN's forward on the CPU.
//
// 1. For every chunk of an expert's rows and every block of intermediate features: one GEMM gives the gate and the up
//    columns of the block side by side (rows of x gathered while packing), and the activation turns the tile, still in
//    cache, into hidden [capacity, intermediate]. Nothing else is stored unless the backward asks for pre_activation.
// 2. For a block of output features at a time: hidden times down[g] into sums [capacity, block], then every item adds
//    up its entries in order. The block keeps the sums small enough to stay near the cores at any number of entries.
//
// Bytes: the touched experts' matrices once per chunk, x once per block of features from cache, hidden twice, sums
// twice. At one row per expert this streams the weights; from about 100 rows the products bound it.
#pragma once

#include <algorithm>
#include <vector>

#include "anabranch/experts/expert_ffn.hpp"
#include "anabranch/experts/row_chunks.hpp"
#include "anabranch/experts/row_kernels.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t ffn_tile_rows = 256;
inline constexpr int64_t ffn_tile_features = 96;     // intermediate features: gate and up make 192 columns
inline constexpr int64_t ffn_tile_columns = 192;     // output features of one tile
inline constexpr int64_t ffn_sums_bytes = 32 << 20;  // budget for the sums of one block of output features

/// Rows of gate_up that hold features first .. first + count: the gate's, then the up half's.
template <class T>
void gate_up_rows(const ExpertFfn<T>& ffn, int64_t first, int64_t count, int32_t* rows) {
  for (int64_t part = 0; part < ffn.num_parts(); ++part) {
    for (int64_t j = 0; j < count; ++j) *rows++ = static_cast<int32_t>(ffn.gate_up_row(part, first + j));
  }
}

/// Output features per block so that `entries` rows of sums fit the budget; a multiple of the tile.
template <class Sum>
int64_t block_columns(int64_t entries, int64_t columns) {
  const int64_t affordable = ffn_sums_bytes / (static_cast<int64_t>(sizeof(Sum)) * std::max<int64_t>(1, entries));
  return std::min(columns, std::max<int64_t>(1, affordable / ffn_tile_columns) * ffn_tile_columns);
}

/// out[t, first + j] = sum over item t's entries of weights[e] * row(e)[j], where row(e) is sums[e] of an expert, the
/// item's own features for an identity group, and nothing for a zero group.
template <class T>
void combine_block(const ExpertFfn<T>& ffn, const accumulate_t<T>* weights, const accumulate_t<T>* sums,
                   const T* identity_rows, int64_t features, int64_t first, int64_t count, T* out) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int32_t experts_end = ffn.group_offsets[ffn.num_experts];
  const int32_t zeros_end = ffn.group_offsets[ffn.num_experts + ffn.num_zero];
  parallel_for(ffn.num_items, std::max<int64_t>(1, 16384 / count), [&](int64_t begin, int64_t end) {
    std::vector<Sum> total(count);
    for (int64_t t = begin; t < end; ++t) {
      std::fill(total.begin(), total.end(), Sum(0));
      for (int32_t i = ffn.item_offsets[t]; i < ffn.item_offsets[t + 1]; ++i) {
        const int32_t e = ffn.entry_ids[i];
        const Sum weight = weights ? weights[e] : Sum(1);
        if (e < experts_end) {
          rows.add_sums(count, weight, sums + e * count, total.data());
        } else if (e >= zeros_end) {
          const Sum scale = ffn.weights ? ffn.weights[e] : Sum(1);
          rows.add(count, scale, identity_rows + t * features + first, total.data());
        }
      }
      rows.store(count, total.data(), out + t * features + first);
    }
  });
}

template <class T>
void gate_up_and_activate(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, T* hidden, T* pre_activation) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t parts = ffn.num_parts(), blocks = ceil_div(ffn.intermediate, ffn_tile_features);
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const int workers = gemm_workers(2 * routed * ffn.in_features * ffn.intermediate * parts);
  parallel_tiles(static_cast<int64_t>(chunks.size()) * blocks, workers, [&](int64_t tile, int) {
    const RowChunk& chunk = chunks[tile / blocks];
    const int64_t first = tile % blocks * ffn_tile_features;
    const int64_t count = std::min(ffn_tile_features, ffn.width(chunk.group) - first);
    if (count <= 0) return;
    const int64_t columns = parts * count;
    int32_t row_ids[2 * ffn_tile_features];
    gate_up_rows(ffn, first, count, row_ids);
    const auto scratch = Scratch<Sum>::of_this_thread(ffn_tile_rows * ffn_tile_columns);
    const T* bias = ffn.gate_up.bias ? ffn.gate_up.bias + chunk.group * parts * ffn.intermediate : nullptr;
    const GemmOperand<T> a{ffn.x, ffn.in_features, 1, ffn.item_ids + chunk.begin};
    const GemmOperand<T> b{ffn.gate_up.weight + chunk.group * ffn.gate_up.expert_stride, ffn.gate_up.out_stride,
                           ffn.gate_up.in_stride, row_ids};
    gemm(chunk.size(), columns, ffn.in_features, a, b, scratch.tile, columns, false, scratch.workspace);
    for (int64_t i = 0; i < chunk.size(); ++i) {
      Sum* gate = scratch.tile + i * columns;
      for (int64_t c = 0; bias && c < columns; ++c) gate[c] += static_cast<Sum>(bias[row_ids[c]]);
      const int64_t e = chunk.begin + i;
      for (int64_t part = 0; pre_activation && part < parts; ++part) {
        rows.store(count, gate + part * count, pre_activation + (e * parts + part) * ffn.intermediate + first);
      }
      const Sum* up = ffn.gated ? gate + count : nullptr;
      rows.activate(ffn.activation, count, gate, up, hidden + e * ffn.intermediate + first);
    }
  });
}

template <class T>
void down_and_combine(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const T* hidden, T* y) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const int64_t block = block_columns<Sum>(routed, ffn.out_features);
  const AlignedBytes bytes = aligned_bytes(routed * block * sizeof(Sum));
  Sum* const sums = reinterpret_cast<Sum*>(bytes.get());
  for (int64_t first = 0; first < ffn.out_features; first += block) {
    const int64_t width = std::min(block, ffn.out_features - first);
    const int64_t tiles = ceil_div(width, ffn_tile_columns);
    const int workers = gemm_workers(2 * routed * ffn.intermediate * width);
    parallel_tiles(static_cast<int64_t>(chunks.size()) * tiles, workers, [&](int64_t tile, int) {
      const RowChunk& chunk = chunks[tile / tiles];
      const int64_t column = tile % tiles * ffn_tile_columns, count = std::min(ffn_tile_columns, width - column);
      const auto scratch = Scratch<Sum>::of_this_thread(0);
      const GemmOperand<T> a{hidden + chunk.begin * ffn.intermediate, ffn.intermediate, 1};
      const GemmOperand<T> b{
          ffn.down.weight + chunk.group * ffn.down.expert_stride + (first + column) * ffn.down.out_stride,
          ffn.down.out_stride, ffn.down.in_stride};
      Sum* const out = sums + chunk.begin * width + column;
      gemm(chunk.size(), count, ffn.width(chunk.group), a, b, out, width, false, scratch.workspace);
      for (int64_t i = 0; ffn.down.bias && i < chunk.size(); ++i) {
        rows.add(count, Sum(1), ffn.down.bias + chunk.group * ffn.out_features + first + column, out + i * width);
      }
    });
    combine_block(ffn, ffn.weights, sums, ffn.x, ffn.out_features, first, width, y);
  }
}

}  // namespace detail

/// expert_ffn_reference, up to rounding.
template <class T>
void expert_ffn_cpu(const ExpertFfn<T>& ffn, T* y, T* pre_activation) {
  const auto chunks = detail::row_chunks(ffn.group_offsets, ffn.num_experts, detail::ffn_tile_rows);
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const auto bytes = detail::aligned_bytes(routed * ffn.intermediate * sizeof(T));
  T* const hidden = reinterpret_cast<T*>(bytes.get());
  detail::gate_up_and_activate(ffn, chunks, hidden, pre_activation);
  detail::down_and_combine(ffn, chunks, hidden, y);
}

}  // namespace anabranch
