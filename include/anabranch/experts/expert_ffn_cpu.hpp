// The expert FFN's forward on the CPU.
//
// 1. For every chunk of an expert's rows and every block of intermediate features: one GEMM gives the gate and the up
//    columns of the block side by side (rows of x gathered while packing), and the activation turns the tile, still in
//    cache, into hidden [capacity, intermediate]. Nothing else is stored unless the backward asks for pre_activation.
// 2. For a block of output features at a time: hidden times down[g] into sums [capacity, block], then every item adds
//    up its entries in order. The block keeps the sums small enough to stay near the cores at any number of entries.
//
// Bytes: the touched experts' matrices once per chunk, x once per block of features from cache, hidden twice, sums
// twice. At one row per expert this streams the weights; from about 100 rows the products bound it. The weights may be
// packed beforehand (packed_experts.hpp): then they are read front to back and never rearranged.
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
    const GemmOperand<T> a{ffn.x, ffn.in_features, 1, ffn.item_ids + chunk.begin};
    const GemmOperand<T> b{ffn.gate_up.weight + chunk.group * ffn.gate_up.expert_stride, ffn.gate_up.out_stride,
                           ffn.gate_up.in_stride, row_ids};
    gemm(chunk.size(), parts * count, ffn.in_features, a, b, scratch.tile, parts * count, false, scratch.workspace);
    return count;
  }

  /// hidden of the chunk's rows times the block's `count` output features.
  void down(const TilePlace& tile, const TilePlace&, int64_t count, const T* hidden, Sum* out, int64_t out_stride,
            void* workspace) const {
    const RowChunk& chunk = tile.chunk;
    const int64_t column = tile.block * ffn_tile_columns;
    const GemmOperand<T> a{hidden + chunk.begin * ffn.intermediate, ffn.intermediate, 1};
    const GemmOperand<T> b{ffn.down.weight + chunk.group * ffn.down.expert_stride + column * ffn.down.out_stride,
                           ffn.down.out_stride, ffn.down.in_stride};
    gemm(chunk.size(), count, ffn.width(chunk.group), a, b, out, out_stride, false, workspace);
  }
};

/// The same on packed weights; a narrow expert's whole block of features is multiplied.
template <class T, class Stored>
struct PackedProducts {
  using Sum = accumulate_t<T>;
  const ExpertFfn<T>& ffn;
  const PackedExperts<T, Stored>& packed;
  PackedLinearShape gate_up_shape = packed_gate_up_shape(ffn.num_parts(), ffn.intermediate, ffn.in_features);
  PackedLinearShape down_shape = packed_down_shape(ffn.out_features, ffn.intermediate);
  PackedGemmKernels<T, Stored> kernels = packed_gemm_kernels<T, Stored>(packed.isa);
  RowKernels<T> rows = row_kernels<T>();

  const Stored* gate_up_block(const TilePlace& tile) const {
    return packed.gate_up + tile.chunk.group * gate_up_shape.expert_elements() + gate_up_shape.block_offset(tile.block);
  }
  const Stored* down_block(const TilePlace& tile) const {
    return packed.down + tile.chunk.group * down_shape.expert_elements() + down_shape.block_offset(tile.block);
  }

  int64_t gate_up(const TilePlace& tile, const TilePlace& next, int64_t, const Scratch<Sum>& scratch) const {
    const RowChunk& chunk = tile.chunk;
    const int64_t parts = ffn.num_parts(), first = tile.block * ffn_tile_features;
    const int64_t features = gate_up_shape.block_features(tile.block), columns = parts * features;
    const GemmOperand<T> a{ffn.x, ffn.in_features, 1, ffn.item_ids + chunk.begin};
    kernels.multiply({chunk.size(), columns, ffn.in_features, a, gate_up_block(tile), ffn.in_features, scratch.tile,
                      columns, scratch.workspace, gate_up_block(next)});
    for (int64_t i = 0; packed.gate_up_scales && i < chunk.size() * parts; ++i) {
      const int64_t part = i % parts;
      rows.scale(features, packed.gate_up_scales + (chunk.group * parts + part) * ffn.intermediate + first,
                 scratch.tile + i * features);
    }
    return features;
  }

  void down(const TilePlace& tile, const TilePlace& next, int64_t count, const T* hidden, Sum* out, int64_t out_stride,
            void* workspace) const {
    const RowChunk& chunk = tile.chunk;
    const GemmOperand<T> a{hidden + chunk.begin * ffn.intermediate, ffn.intermediate, 1};
    kernels.multiply({chunk.size(), count, ffn.width(chunk.group), a, down_block(tile), ffn.intermediate, out,
                      out_stride, workspace, down_block(next)});
    for (int64_t i = 0; packed.down_scales && i < chunk.size(); ++i) {
      rows.scale(count, packed.down_scales + chunk.group * ffn.out_features + tile.block * ffn_tile_columns,
                 out + i * out_stride);
    }
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
    const T* bias = ffn.gate_up.bias ? ffn.gate_up.bias + chunk.group * parts * ffn.intermediate : nullptr;
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

template <class T, class Products>
void down_and_combine(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const Products& products,
                      const T* hidden, T* y) {
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
        rows.add(count, Sum(1), ffn.down.bias + chunk.group * ffn.out_features + first + column, out + i * width);
      }
    });
    combine_block(ffn, ffn.weights, sums, ffn.x, ffn.out_features, first, width, y);
  }
}

template <class T, class Products>
void expert_ffn_forward(const ExpertFfn<T>& ffn, const Products& products, T* y, T* pre_activation) {
  const auto chunks = row_chunks(ffn.group_offsets, ffn.num_experts, ffn_tile_rows);
  const Temporary<T> hidden(ffn.group_offsets[ffn.num_experts] * ffn.intermediate);
  gate_up_and_activate(ffn, chunks, products, hidden.data(), pre_activation);
  down_and_combine(ffn, chunks, products, hidden.data(), y);
}

}  // namespace detail

/// expert_ffn_reference, up to rounding.
template <class T>
void expert_ffn_cpu(const ExpertFfn<T>& ffn, T* y, T* pre_activation) {
  detail::expert_ffn_forward(ffn, detail::StridedProducts<T>{ffn}, y, pre_activation);
}

/// The same from packed weights; ffn's own are not read (its biases are).
template <class T, class Stored>
void expert_ffn_packed_cpu(const ExpertFfn<T>& ffn, const PackedExperts<T, Stored>& packed, T* y) {
  detail::expert_ffn_forward(ffn, detail::PackedProducts<T, Stored>{ffn, packed}, y, static_cast<T*>(nullptr));
}

/// Packs num_experts matrices [parts * out, in]; row_of(part, j) is the row that holds feature j of a part.
template <class T, class Stored, class RowOf>
void pack_linear_cpu(const PackedLinearShape& shape, const ExpertLinear<const Stored>& linear, int64_t num_experts,
                     RowOf row_of, CpuIsa isa, Stored* to) {
  const auto kernels = packed_gemm_kernels<T, Stored>(isa);
  const int64_t blocks = shape.num_blocks();
  parallel_tiles(num_experts * blocks, workers_for(num_experts * blocks, 1), [&](int64_t tile, int) {
    const int64_t g = tile / blocks, block = tile % blocks, features = shape.block_features(block);
    std::vector<int32_t> rows(shape.parts * features);
    for (int64_t i = 0; i < shape.parts * features; ++i) {
      rows[i] = static_cast<int32_t>(row_of(i / features, block * shape.block + i % features));
    }
    Stored* const first = to + g * shape.expert_elements() + shape.block_offset(block);
    Stored* const last = kernels.pack(
        shape.parts * features, shape.in_features,
        {linear.weight + g * linear.expert_stride, linear.out_stride, linear.in_stride, rows.data()}, first);
    std::fill(last, first + shape.block_elements(block), Stored{});  // equal weights pack to equal bytes
  });
}

}  // namespace anabranch
