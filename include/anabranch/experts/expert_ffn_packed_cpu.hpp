// The expert FFN's forward on weights that were packed beforehand, and the packing (packed_experts.hpp has the layout).
//
// Tiles, activation and combine are expert_ffn_cpu.hpp's. Weights are read front to back and never rearranged; while
// one tile is multiplied, the beginning of the next one's weights is prefetched. Bytes and floor: each touched expert's
// packed matrices once per 256 rows, over bandwidth; from about 100 rows the products bound it.
#pragma once

#include "anabranch/experts/expert_ffn_cpu.hpp"
#include "anabranch/experts/packed_experts.hpp"

namespace anabranch {

namespace detail {

/// The two products of a tile on packed weights; of a narrow expert's last block, what its features need.
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
    return packed.gate_up + ffn.expert(tile.chunk.group) * gate_up_shape.expert_elements() +
           gate_up_shape.block_offset(tile.block);
  }
  const Stored* down_block(const TilePlace& tile) const {
    return packed.down + ffn.expert(tile.chunk.group) * down_shape.expert_elements() +
           down_shape.block_offset(tile.block);
  }

  int64_t gate_up(const TilePlace& tile, const TilePlace& next, int64_t count, const Scratch<Sum>& scratch) const {
    const RowChunk& chunk = tile.chunk;
    const int64_t parts = ffn.num_parts(), first = tile.block * ffn_tile_features;
    const int64_t features = gate_up_shape.block_features(tile.block), columns = parts * features;
    const GemmOperand<T> a = entry_rows(ffn, ffn.x, ffn.in_features, chunk.begin);
    kernels.multiply({chunk.size(), columns, ffn.in_features, a, gate_up_block(tile), ffn.in_features, scratch.tile,
                      columns, scratch.workspace, gate_up_block(next), features, count});
    for (int64_t i = 0; packed.gate_up_scales && i < chunk.size() * parts; ++i) {
      const int64_t part = i % parts;
      rows.scale(count, packed.gate_up_scales + (ffn.expert(chunk.group) * parts + part) * ffn.intermediate + first,
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
      rows.scale(count, packed.down_scales + ffn.expert(chunk.group) * ffn.out_features + tile.block * ffn_tile_columns,
                 out + i * out_stride);
    }
  }
};

}  // namespace detail

/// expert_ffn_reference from packed weights, up to rounding; ffn's own are not read (its biases are).
template <class T, class Stored>
void expert_ffn_packed_cpu(const ExpertFfn<T>& ffn, const PackedExperts<T, Stored>& packed, T* y) {
  detail::expert_ffn_forward(ffn, detail::PackedProducts<T, Stored>{ffn, packed}, static_cast<T*>(nullptr),
                             detail::combine_items(ffn, y));
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
