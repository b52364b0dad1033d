// The expert FFN's forward on the CPU.
//
// 1. For every chunk of an expert's rows and every block of intermediate features: one GEMM gives the gate and the up
//    columns of the block side by side (rows of x gathered while packing), and the activation turns the tile, still in
//    cache, into hidden [capacity, intermediate]. Nothing else is stored unless the backward asks for pre_activation.
// 2. For a block of output features at a time: hidden times down[g] into sums [capacity, block], then every item adds
//    up its entries in order. The block keeps the sums small enough to stay near the cores at any number of entries.
//
// Bytes: the touched experts' matrices once per chunk, x once per block of features from cache, hidden twice, sums
// twice. At one row per expert this streams the weights; from about 100 rows the products bound it. On packed weights
// the products alone are others (expert_ffn_packed_cpu.hpp).
#pragma once

#include <algorithm>
#include <vector>

#include "anabranch/experts/expert_ffn.hpp"
#include "anabranch/experts/packed_experts.hpp"
#include "anabranch/experts/row_chunks.hpp"
#include "anabranch/experts/row_kernels.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t ffn_tile_rows = 256;
inline constexpr int64_t ffn_tile_features = packed_gate_up_features;  // gate and up make 192 columns
inline constexpr int64_t ffn_tile_columns = packed_down_features;      // output features of one tile
inline constexpr int64_t ffn_sums_bytes = 32 << 20;  // budget for the sums of one block of output features

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

/// Rows of a matrix that the entries from `begin` on read, `columns` elements each.
template <class T>
GemmOperand<T> entry_rows(const ExpertFfn<T>& ffn, const T* matrix, int64_t columns, int64_t begin) {
  if (ffn.item_ids) return {matrix, columns, 1, ffn.item_ids + begin};
  return {matrix + begin * columns, columns, 1};
}

/// The two products of a tile on weights as they came.
template <class T>
struct StridedProducts {
  using Sum = accumulate_t<T>;
  const ExpertFfn<T>& ffn;

  /// x of the chunk's rows times the block's intermediate features: tile [rows][parts][features], of which the first
  /// `count` features of each part are wanted. Returns `features`.
  int64_t gate_up(const TilePlace& tile, const TilePlace&, int64_t count, const Scratch<Sum>& scratch) const {
    const RowChunk& chunk = tile.chunk;
    const int64_t parts = ffn.num_parts(), first = tile.block * ffn_tile_features;
    int32_t row_ids[2 * ffn_tile_features];
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t j = 0; j < count; ++j) {
        row_ids[part * count + j] = static_cast<int32_t>(ffn.gate_up_row(part, first + j));
      }
    }
    const GemmOperand<T> a = entry_rows(ffn, ffn.x, ffn.in_features, chunk.begin);
    const GemmOperand<T> b{ffn.gate_up.weight + ffn.expert(chunk.group) * ffn.gate_up.expert_stride,
                           ffn.gate_up.out_stride, ffn.gate_up.in_stride, row_ids};
    gemm(chunk.size(), parts * count, ffn.in_features, a, b, scratch.tile, parts * count, false, scratch.workspace);
    return count;
  }

  /// hidden of the chunk's rows times the block's `count` output features.
  void down(const TilePlace& tile, const TilePlace&, int64_t count, const T* hidden, Sum* out, int64_t out_stride,
            void* workspace) const {
    const RowChunk& chunk = tile.chunk;
    const int64_t column = tile.block * ffn_tile_columns;
    const GemmOperand<T> a{hidden + chunk.begin * ffn.intermediate, ffn.intermediate, 1};
    const T* const weight = ffn.down.weight + ffn.expert(chunk.group) * ffn.down.expert_stride;
    const GemmOperand<T> b{weight + column * ffn.down.out_stride, ffn.down.out_stride, ffn.down.in_stride};
    gemm(chunk.size(), count, ffn.width(chunk.group), a, b, out, out_stride, false, workspace);
  }
};

template <class T, class Products>
void gate_up_and_activate(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const Products& products,
                          T* hidden, T* pre_activation) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t parts = ffn.num_parts(), blocks = ceil_div(ffn.intermediate, ffn_tile_features);
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const int workers = gemm_workers(2 * routed * ffn.in_features * ffn.intermediate * parts);
  const int64_t tiles = static_cast<int64_t>(chunks.size()) * blocks;
  const auto place = [&](int64_t tile) { return TilePlace{chunks[tile / blocks], tile % blocks}; };
  parallel_tiles(tiles, workers, [&](int64_t tile, int) {
    const RowChunk& chunk = chunks[tile / blocks];
    const int64_t first = tile % blocks * ffn_tile_features;
    const int64_t count = std::min(ffn_tile_features, ffn.width(chunk.group) - first);
    if (count <= 0) return;
    const auto scratch = Scratch<Sum>::of_this_thread(ffn_tile_rows * ffn_tile_columns);
    const int64_t features = products.gate_up(place(tile), place(std::min(tile + 1, tiles - 1)), count, scratch);
    const T* bias = ffn.gate_up.bias ? ffn.gate_up.bias + ffn.expert(chunk.group) * parts * ffn.intermediate : nullptr;
    for (int64_t i = 0; i < chunk.size(); ++i) {
      Sum* gate = scratch.tile + i * parts * features;
      const int64_t e = chunk.begin + i;
      for (int64_t part = 0; part < parts; ++part) {
        Sum* half = gate + part * features;
        for (int64_t j = 0; bias && j < count; ++j) half[j] += static_cast<Sum>(bias[ffn.gate_up_row(part, first + j)]);
        if (pre_activation) rows.store(count, half, pre_activation + (e * parts + part) * ffn.intermediate + first);
      }
      rows.activate(ffn.activation, count, gate, ffn.gated ? gate + features : nullptr,
                    hidden + e * ffn.intermediate + first);
    }
  });
}

/// combine(sums, first, width): what becomes of the output features first .. first + width of all entries.
template <class T, class Products, class Combine>
void down_and_combine(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const Products& products,
                      const T* hidden, const Combine& combine) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const int64_t block = block_columns<Sum>(routed, ffn.out_features);
  const Temporary<Sum> block_sums(routed * block);
  Sum* const sums = block_sums.data();
  for (int64_t first = 0; first < ffn.out_features; first += block) {
    const int64_t width = std::min(block, ffn.out_features - first);
    const int64_t blocks = ceil_div(width, ffn_tile_columns);
    const int64_t tiles = static_cast<int64_t>(chunks.size()) * blocks;
    const int workers = gemm_workers(2 * routed * ffn.intermediate * width);
    const auto place = [&](int64_t tile) {
      return TilePlace{chunks[tile / blocks], first / ffn_tile_columns + tile % blocks};
    };
    parallel_tiles(tiles, workers, [&](int64_t tile, int) {
      const RowChunk& chunk = chunks[tile / blocks];
      const int64_t column = tile % blocks * ffn_tile_columns, count = std::min(ffn_tile_columns, width - column);
      const auto scratch = Scratch<Sum>::of_this_thread(0);
      Sum* const out = sums + chunk.begin * width + column;
      products.down(place(tile), place(std::min(tile + 1, tiles - 1)), count, hidden, out, width, scratch.workspace);
      for (int64_t i = 0; ffn.down.bias && i < chunk.size(); ++i) {
        const T* const bias = ffn.down.bias + ffn.expert(chunk.group) * ffn.out_features;
        rows.add(count, Sum(1), bias + first + column, out + i * width);
      }
    });
    combine(static_cast<const Sum*>(sums), first, width);
  }
}

template <class T, class Products, class Combine>
void expert_ffn_forward(const ExpertFfn<T>& ffn, const Products& products, T* pre_activation, const Combine& combine) {
  const auto chunks = row_chunks(ffn.group_offsets, ffn.num_experts, ffn_tile_rows);
  const Temporary<T> hidden(ffn.group_offsets[ffn.num_experts] * ffn.intermediate);
  gate_up_and_activate(ffn, chunks, products, hidden.data(), pre_activation);
  down_and_combine(ffn, chunks, products, hidden.data(), combine);
}

/// The combine of the expert FFN: every item adds up its entries.
template <class T>
auto combine_items(const ExpertFfn<T>& ffn, T* y) {
  return [&ffn, y](const accumulate_t<T>* sums, int64_t first, int64_t width) {
    combine_block(ffn, ffn.weights, sums, ffn.x, ffn.out_features, first, width, y);
  };
}

}  // namespace detail

/// expert_ffn_reference, up to rounding.
template <class T>
void expert_ffn_cpu(const ExpertFfn<T>& ffn, T* y, T* pre_activation) {
  detail::expert_ffn_forward(ffn, detail::StridedProducts<T>{ffn}, pre_activation, detail::combine_items(ffn, y));
}

}  // namespace anabranch
