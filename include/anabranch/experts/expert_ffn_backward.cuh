// The expert FFN's backward on any GPU: at most nine launches, of which those of unwanted gradients are left out.
//
// 1. tile_schedule.cuh.
// 2. hidden: d = dy down[g] for 64 gathered rows by 64 features; the tile, in shared memory, becomes weight * hidden,
//    [dgate; dup] and, per row, the part <hidden, d> of the weight's gradient, by a fixed shuffle tree.
// 3. weights: a warp per entry adds the parts in order, and the products with the down bias or, for identity groups, x.
// 4. dx: [dgate; dup] times gate_up[g] into sums [capacity, in_features], then combine.cuh by item.
// 5. Weight gradients: GroupedOuter, one block per tile over the expert's rows in order; biases likewise. Frozen
// experts
//    and experts without rows cost a write of zeros.
//
// Every element is written by one thread and every sum has one order: results repeat bit for bit. FLOPs: twice the
// forward's. Bytes: the touched matrices read twice and all gradients written once; per entry pre_activation, its
// gradient and weight * hidden. Floor: as the forward's.
#pragma once

#include "anabranch/experts/expert_ffn.cuh"
#include "anabranch/experts/expert_ffn_backward.hpp"

namespace anabranch {

/// Parts in which the gradient of an entry's weight is made.
inline int64_t expert_ffn_dot_parts(int64_t intermediate) {
  return (intermediate + detail::kGemmTile - 1) / detail::kGemmTile;
}

/// What is null belongs to gradients that are not wanted.
template <class T>
struct ExpertFfnBackwardScratch {
  int32_t* schedule;              // row_tiles_scratch(num_experts)
  T* weighted_hidden;             // [capacity, intermediate], for down.weight
  T* dpre_activation;             // [capacity, parts, intermediate], always
  accumulate_t<T>* partial_dots;  // [expert_ffn_dot_parts(intermediate), capacity], for weights
  accumulate_t<T>* sums;          // [capacity, in_features], for x
};

namespace detail {

template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    hidden_backward_kernel(ExpertFfn<T> ffn, RowTiles tiles, GemmLines<T> dy, GemmLines<T> down,
                           const T* pre_activation, ExpertFfnBackwardScratch<T> to) {
  using Sum = accumulate_t<T>;
  const int64_t inner = ffn.intermediate, feature_tiles = ceil_div_64(inner), block = blockIdx.x;
  const RowTile rows = tiles.tile(block / feature_tiles);
  const int64_t first = block % feature_tiles * kGemmTile;
  if (rows.group < 0) return;
  const int count = lines_from(first, expert_width(ffn, rows.group)), parts = ffn.gated ? 2 : 1;
  if (count == 0) return;
  GemmTile<T> tile;
  tile.add(dy, rows.begin, rows.size(), down.moved(ffn.expert(rows.group) * ffn.down.expert_stride), first, count,
           ffn.out_features);
  const SharedArray<Sum> sums = tile.share();
  for_each_tile_row(rows.size(), [&](int row, int lane) {
    const int64_t entry = rows.begin + row;
    const Sum weight = ffn.weights ? ffn.weights[entry] : Sum(1);
    Sum dot = 0;
#pragma unroll 1
    for (int l = lane; l < count; l += 32) {
      const Sum d = sums[row * kGemmTile + l];
      const int64_t at = entry * parts * inner + first + l;
      const auto gate = activate(ffn.activation, static_cast<Sum>(pre_activation[at]));
      const Sum up = ffn.gated ? static_cast<Sum>(pre_activation[at + inner]) : Sum(1);
      const Sum hidden = gate.value * up, upstream = weight * d;
      dot += hidden * d;
      if (to.weighted_hidden) to.weighted_hidden[entry * inner + first + l] = T(weight * hidden);
      to.dpre_activation[at] = T(upstream * up * gate.derivative);
      if (ffn.gated) to.dpre_activation[at + inner] = T(upstream * gate.value);
    }
    dot = warp_sum(dot);
    if (to.partial_dots && lane == 0) to.partial_dots[first / kGemmTile * tiles.num_rows + entry] = dot;
  });
}

/// Rows of dy by entry: entry e has row ids[e]. Ids outside [0, num_rows) stand for zeros.
template <class T>
struct Upstream {
  const T* dy;  // [num_rows, out_features]
  const int32_t* ids;
  int64_t num_rows;
};

/// Gradients of the entries' weights, and where they go.
template <class T>
struct WeightsBackward {
  const accumulate_t<T>* partial_dots;  // [expert_ffn_dot_parts(intermediate), capacity]
  int64_t capacity, num_entries;        // num_entries may be more
  accumulate_t<T> factor;
  accumulate_t<T>* out;       // [num_entries]
  const int32_t* out_places;  // of entries in out, or null for their own numbers
};

/// A warp per entry; zero past the plan's end.
template <class T>
__global__ void __launch_bounds__(256)
    weights_backward_kernel(ExpertFfn<T> ffn, Upstream<T> rows, WeightsBackward<T> weights) {
  using Sum = accumulate_t<T>;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, num_groups = ffn.num_groups();
  const int lane = static_cast<int>(threadIdx.x);
  if (entry >= weights.num_entries) return;
  Sum sum = 0;
  const int64_t item = num_groups > 0 && entry < ffn.group_offsets[num_groups] ? rows.ids[entry] : -1;
  if (item >= 0 && item < rows.num_rows) {
    const int32_t group = group_of_entry(ffn.group_offsets, num_groups, entry);
    const T *upstream = rows.dy + item * ffn.out_features, *other = nullptr;
    if (group < ffn.num_experts) {
      const int64_t blocks = ceil_div_64(expert_width(ffn, group));
      for (int64_t block = lane; block < blocks; block += 32)
        sum += weights.partial_dots[block * weights.capacity + entry];
      if (ffn.down.bias) other = ffn.down.bias + ffn.expert(group) * ffn.out_features;
    } else if (ffn.is_identity(group)) {
      other = ffn.x + item * ffn.in_features;
    }
    for (int64_t o = lane; other && o < ffn.out_features; o += 32) {
      sum += static_cast<Sum>(other[o]) * static_cast<Sum>(upstream[o]);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) weights.out[weights.out_places ? weights.out_places[entry] : entry] = weights.factor * sum;
}

template <class T>
void weights_backward_cuda(const ExpertFfn<T>& ffn, const Upstream<T>& rows, const WeightsBackward<T>& weights,
                           cudaStream_t stream) {
  if (weights.num_entries == 0) return;
  const dim3 block(32, 8);
  launch(weights_backward_kernel<T>, row_grid(weights.num_entries, block), block, 0, stream, ffn, rows, weights);
}

/// to[g](part, c) = sum over the entries e of expert g of (scales ? scales[e] : 1) * entries(part, c, e).
template <class T>
struct BiasGradient {
  GemmColumns<T> entries;  // line c, element e
  const accumulate_t<T>* scales;
  const int32_t* widths;
  int64_t columns, num_parts, entries_part_stride;
  T* to;
  int64_t group_stride, part_stride, column_stride;
};

inline constexpr int kBiasRows = 8;

/// 32 columns of one expert by 8 threads per column, each of which takes every eighth row.
template <class T>
__global__ void __launch_bounds__(32 * kBiasRows, 4)
    bias_backward_kernel(ExpertFfn<T> ffn, int64_t capacity, BiasGradient<T> bias, const bool* frozen) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const SharedArray<Sum> partial = shared.take<Sum>(32 * kBiasRows);
  const int64_t strips = (bias.columns + 31) / 32, block = blockIdx.x;
  const int64_t column = block % strips * 32 + threadIdx.x;
  const int64_t part = block / strips % bias.num_parts, group = block / strips / bias.num_parts;
  const RowRange rows = rows_of_group(ffn.group_offsets, group, ffn.num_groups(), capacity);
  Sum sum = 0;
  if (column < width_within(bias.widths, group, bias.columns) && !(frozen && frozen[group])) {
    const GemmColumns<T> entries = bias.entries.from(part * bias.entries_part_stride, 0);
    for (int64_t e = rows.begin + threadIdx.y; e < rows.end; e += kBiasRows) {
      const int64_t row = entries.k_ids ? entries.k_ids[e] : e;
      if (entries.k_ids && (row < 0 || row >= entries.num_ids)) continue;
      const Sum value = static_cast<Sum>(entries.data[column * entries.line_stride + row * entries.k_stride]);
      sum += (bias.scales ? bias.scales[e] : Sum(1)) * value;
    }
  }
  partial[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= bias.columns) return;
  Sum total = 0;
  for (int y = 0; y < kBiasRows; ++y) {
    const Sum rest = partial[y * 32 + threadIdx.x];
    total += rest;
  }
  bias.to[group * bias.group_stride + part * bias.part_stride + column * bias.column_stride] = T(total);
}

template <class T>
void bias_backward_cuda(const ExpertFfn<T>& ffn, int64_t capacity, const BiasGradient<T>& bias, const bool* frozen,
                        cudaStream_t stream) {
  const int64_t blocks = ffn.num_experts * bias.num_parts * ((bias.columns + 31) / 32);
  if (blocks == 0) return;
  launch(bias_backward_kernel<T>, grid_of(blocks), dim3(32, kBiasRows), shared_bytes<accumulate_t<T>>(32 * kBiasRows),
         stream, ffn, capacity, bias, frozen);
}

template <class T>
void hidden_backward_cuda(const ExpertFfn<T>& ffn, const RowTiles& tiles, const Upstream<T>& upstream,
                          const T* pre_activation, const ExpertFfnBackwardScratch<T>& to, cudaStream_t stream) {
  const int64_t blocks = tiles.max_tiles * expert_ffn_dot_parts(ffn.intermediate);
  if (blocks == 0) return;
  const GemmLines<T> dy{upstream.dy, ffn.out_features, 1, upstream.ids, upstream.num_rows};
  const GemmLines<T> down{ffn.down.weight, ffn.down.in_stride, ffn.down.out_stride};
  launch(hidden_backward_kernel<T>, grid_of(blocks), kGemmThreads, GemmTile<T>::shared_size(), stream, ffn, tiles, dy,
         down, pre_activation, to);
}

template <class T, class Store>
void input_backward_cuda(const ExpertFfn<T>& ffn, const RowTiles& tiles, const T* dpre_activation, const Store& store,
                         cudaStream_t stream) {
  const auto strides = HalfStrides::of(ffn, ffn.gate_up.out_stride);
  GroupedRows<T, Store> rows{};
  rows.tiles = tiles;
  rows.a = {dpre_activation, ffn.num_parts() * ffn.intermediate, 1};
  rows.b = {ffn.gate_up.weight, ffn.gate_up.in_stride, strides.feature};
  rows.b_group_stride = ffn.expert(1) * ffn.gate_up.expert_stride;
  rows.widths = ffn.widths;
  rows.k = ffn.intermediate;
  rows.n = ffn.in_features;
  rows.num_parts = ffn.num_parts();
  rows.a_part_stride = ffn.intermediate;
  rows.b_part_stride = strides.half;
  rows.store = store;
  grouped_rows_cuda(rows, stream);
}

/// Some of the intermediate features.
struct FeatureRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

/// Every gradient of an expert's own tensors that is not null, of the features in a range alone. Each group is an
/// expert of its own here.
template <class T>
void expert_weights_backward_cuda(const ExpertFfn<T>& ffn, int64_t capacity, const Upstream<T>& rows,
                                  const ExpertFfnBackwardScratch<T>& scratch, const ExpertFfnGradients<T>& gradients,
                                  const FeatureRange& range, cudaStream_t stream) {
  const int64_t parts = ffn.num_parts(), inner = ffn.intermediate;
  const GemmColumns<T> x{ffn.x, 1, ffn.in_features, ffn.item_ids, ffn.num_items};
  const GemmColumns<T> upstream{rows.dy, 1, ffn.out_features, rows.ids, rows.num_rows};
  const GemmColumns<T> dpre{scratch.dpre_activation + range.begin, 1, parts * inner};
  GroupedOuter<T> outer{};
  outer.row_offsets = ffn.group_offsets;
  outer.num_groups = ffn.num_experts;
  outer.num_rows = capacity;
  outer.frozen = gradients.frozen;
  if (const auto& to = gradients.down; to.weight) {
    GroupedOuter<T> down = outer;
    down.left = upstream;
    down.right = {scratch.weighted_hidden + range.begin, 1, inner};
    down.right_widths = ffn.widths;
    down.m = ffn.out_features;
    down.n = range.size();
    down.num_parts = 1;
    down.to = to.weight + range.begin * to.in_stride;
    down.group_stride = to.expert_stride;
    down.row_stride = to.out_stride;
    down.column_stride = to.in_stride;
    grouped_outer_cuda(down, stream);
  }
  if (const auto& to = gradients.gate_up; to.weight) {
    const auto strides = HalfStrides::of(ffn, to.out_stride);
    GroupedOuter<T> gate_up = outer;
    gate_up.left = dpre;
    gate_up.right = x;
    gate_up.left_widths = ffn.widths;
    gate_up.m = range.size();
    gate_up.n = ffn.in_features;
    gate_up.num_parts = parts;
    gate_up.left_part_stride = inner;
    gate_up.to = to.weight + range.begin * strides.feature;
    gate_up.group_stride = to.expert_stride;
    gate_up.part_stride = strides.half;
    gate_up.row_stride = strides.feature;
    gate_up.column_stride = to.in_stride;
    grouped_outer_cuda(gate_up, stream);
  }
  if (T* to = gradients.down.bias) {
    const BiasGradient<T> bias{upstream, ffn.weights, nullptr, ffn.out_features, 1, 0, to, ffn.out_features, 0, 1};
    bias_backward_cuda(ffn, capacity, bias, gradients.frozen, stream);
  }
  if (T* to = gradients.gate_up.bias) {
    const auto strides = HalfStrides::of(ffn, 1);
    BiasGradient<T> bias{dpre,  nullptr, ffn.widths,    range.size(), parts,
                         inner, to,      parts * inner, strides.half, strides.feature};
    bias.to += range.begin * strides.feature;
    bias_backward_cuda(ffn, capacity, bias, gradients.frozen, stream);
  }
}

}  // namespace detail

/// expert_ffn_backward_reference, up to rounding. capacity: the size of item_ids; dweights past the plan's end is zero.
template <class T>
void expert_ffn_backward_cuda(const ExpertFfn<T>& ffn, int64_t capacity, const T* dy, const T* pre_activation,
                              const ExpertFfnBackwardScratch<T>& scratch, const ExpertFfnGradients<T>& gradients,
                              cudaStream_t stream) {
  const detail::Upstream<T> upstream{dy, ffn.item_ids, ffn.num_items};
  if (capacity > 0 && ffn.num_experts > 0) {
    const auto tiles = row_tiles_cuda(ffn.group_offsets, ffn.num_experts, capacity, detail::kGemmTile, false,
                                      scratch.schedule, stream);
    detail::hidden_backward_cuda(ffn, tiles, upstream, pre_activation, scratch, stream);
    if (gradients.x) {
      detail::input_backward_cuda(ffn, tiles, scratch.dpre_activation,
                                  detail::PlainStore<accumulate_t<T>>{scratch.sums}, stream);
    }
  }
  if (gradients.x) {
    auto combine = expert_combine_of<T, accumulate_t<T>>(ffn, capacity);
    combine.rows = scratch.sums;
    combine.identity_rows = dy;
    combine.features = ffn.in_features;
    combine.out = gradients.x;
    expert_combine_cuda(combine, stream);
  }
  if (gradients.weights) {
    detail::weights_backward_cuda(
        ffn, upstream, {scratch.partial_dots, capacity, capacity, accumulate_t<T>(1), gradients.weights, nullptr},
        stream);
  }
  detail::expert_weights_backward_cuda(ffn, capacity, upstream, scratch, gradients, {0, ffn.intermediate}, stream);
}

}  // namespace anabranch
