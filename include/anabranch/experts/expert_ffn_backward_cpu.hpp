// The expert FFN's backward on the CPU, in three passes over tiles, each output element written by one worker.
//
// 1. d = dy down[g] per chunk of rows and block of features, turned in cache into w * hidden, [dgate; dup] and a
//    partial <hidden, d> per row and block; the partials are added in block order, so dweights is deterministic.
// 2. dx: [dgate; dup] gate_up[g] into sums for a block of columns, then every item adds up its entries in order.
// 3. Weight gradients: a tile of one expert's matrix sums over the expert's rows in order; frozen experts cost nothing.
//
// FLOPs: twice the forward's. Bytes: the touched matrices read twice and their gradients written once, per entry the
// saved pre_activation, its gradient and w * hidden.
#pragma once

#include <algorithm>
#include <numeric>

#include "anabranch/experts/expert_ffn_backward.hpp"
#include "anabranch/experts/expert_ffn_cpu.hpp"

namespace anabranch {

namespace detail {

// Columns of one tile: wide, because the rows of the weights are read along them, and no wider than keeps the tile of
// sums in the L2 cache.
inline constexpr int64_t hidden_tile_columns = 384;
inline constexpr int64_t input_tile_columns = 768;

template <class T>
struct HiddenGradients {
  T* weighted_hidden;  // [entries, intermediate]
  T* dpre_activation;  // [entries, parts, intermediate]
};

template <class T>
void hidden_backward(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const T* dy, const T* pre_activation,
                     const HiddenGradients<T>& hidden, accumulate_t<T>* partial_dots) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t parts = ffn.num_parts(), blocks = ceil_div(ffn.intermediate, hidden_tile_columns);
  const int64_t routed = ffn.group_offsets[ffn.num_experts];
  const int workers = gemm_workers(2 * routed * ffn.out_features * ffn.intermediate);
  parallel_tiles(static_cast<int64_t>(chunks.size()) * blocks, workers, [&](int64_t tile, int) {
    const RowChunk& chunk = chunks[tile / blocks];
    const int64_t block = tile % blocks, first = block * hidden_tile_columns;
    const int64_t count = std::min(hidden_tile_columns, ffn.width(chunk.group) - first);
    if (count <= 0) {
      std::fill(partial_dots + block * routed + chunk.begin, partial_dots + block * routed + chunk.end, Sum(0));
      return;
    }
    const auto scratch = Scratch<Sum>::of_this_thread(ffn_tile_rows * hidden_tile_columns);
    const GemmOperand<T> a = entry_rows(ffn, dy, ffn.out_features, chunk.begin);
    const T* const weight = ffn.down.weight + ffn.expert(chunk.group) * ffn.down.expert_stride;
    const GemmOperand<T> b{weight + first * ffn.down.in_stride, ffn.down.in_stride, ffn.down.out_stride};
    gemm(chunk.size(), count, ffn.out_features, a, b, scratch.tile, count, false, scratch.workspace);
    for (int64_t i = 0; i < chunk.size(); ++i) {
      const int64_t e = chunk.begin + i, at = e * parts * ffn.intermediate + first;
      const bool gated = ffn.gated;
      partial_dots[block * routed + e] = rows.activate_backward(
          ffn.activation, count, pre_activation + at, gated ? pre_activation + at + ffn.intermediate : nullptr,
          scratch.tile + i * count, ffn.weights ? ffn.weights[e] : Sum(1),
          hidden.weighted_hidden + e * ffn.intermediate + first, hidden.dpre_activation + at,
          gated ? hidden.dpre_activation + at + ffn.intermediate : nullptr);
    }
  });
}

/// dweights from the partial dots, the down bias, and the entries of zero and identity groups.
template <class T>
void weights_backward(const ExpertFfn<T>& ffn, const T* dy, const accumulate_t<T>* partial_dots,
                      accumulate_t<T>* dweights) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  const int64_t routed = ffn.group_offsets[ffn.num_experts], blocks = ceil_div(ffn.intermediate, hidden_tile_columns);
  parallel_tiles(ffn.num_groups(), workers_for(ffn.group_offsets[ffn.num_groups()], 64), [&](int64_t g, int) {
    for (int64_t e = ffn.group_offsets[g]; e < ffn.group_offsets[g + 1]; ++e) {
      const T* upstream = dy + ffn.item(e) * ffn.out_features;
      Sum sum = 0;
      if (g < ffn.num_experts) {
        for (int64_t block = 0; block < blocks; ++block) sum += partial_dots[block * routed + e];
        const T* const bias = ffn.down.bias ? ffn.down.bias + ffn.expert(g) * ffn.out_features : nullptr;
        if (bias) sum += rows.dot(ffn.out_features, bias, upstream);
      } else if (ffn.is_identity(g)) {
        sum = rows.dot(ffn.out_features, ffn.x + ffn.item(e) * ffn.in_features, upstream);
      }
      dweights[e] = sum;
    }
  });
}

/// combine(sums, first, width): what becomes of the gradient of the input's columns first .. first + width.
template <class T, class Combine>
void input_backward(const ExpertFfn<T>& ffn, const std::vector<RowChunk>& chunks, const T* dpre_activation,
                    const Combine& combine) {
  using Sum = accumulate_t<T>;
  const int64_t parts = ffn.num_parts(), routed = ffn.group_offsets[ffn.num_experts];
  const int64_t block = block_columns<Sum>(routed, ffn.in_features);
  const Temporary<Sum> block_sums(routed * block);
  Sum* const sums = block_sums.data();
  std::vector<int32_t> gate_rows(ffn.intermediate), up_rows(ffn.intermediate);
  for (int64_t j = 0; j < ffn.intermediate; ++j) {
    gate_rows[j] = static_cast<int32_t>(ffn.gate_up_row(0, j));
    up_rows[j] = static_cast<int32_t>(ffn.gate_up_row(1, j));
  }
  for (int64_t first = 0; first < ffn.in_features; first += block) {
    const int64_t width = std::min(block, ffn.in_features - first), tiles = ceil_div(width, input_tile_columns);
    const int workers = gemm_workers(2 * routed * parts * ffn.intermediate * width);
    parallel_tiles(static_cast<int64_t>(chunks.size()) * tiles, workers, [&](int64_t tile, int) {
      const RowChunk& chunk = chunks[tile / tiles];
      const int64_t column = tile % tiles * input_tile_columns, count = std::min(input_tile_columns, width - column);
      const auto scratch = Scratch<Sum>::of_this_thread(0);
      for (int64_t part = 0; part < parts; ++part) {
        const GemmOperand<T> a{dpre_activation + (chunk.begin * parts + part) * ffn.intermediate,
                               parts * ffn.intermediate, 1};
        const T* const weight = ffn.gate_up.weight + ffn.expert(chunk.group) * ffn.gate_up.expert_stride;
        const GemmOperand<T> b{weight + (first + column) * ffn.gate_up.in_stride, ffn.gate_up.in_stride,
                               ffn.gate_up.out_stride, nullptr, part == 0 ? gate_rows.data() : up_rows.data()};
        gemm(chunk.size(), count, ffn.width(chunk.group), a, b, sums + chunk.begin * width + column, width, part > 0,
             scratch.workspace);
      }
    });
    combine(static_cast<const Sum*>(sums), first, width);
  }
}

/// One factor of a weight gradient: column c of entry e is data[(row_ids ? row_ids[e] : e) * row_stride + c].
template <class T>
struct EntryRows {
  const T* data;
  int64_t row_stride;
  const int32_t* row_ids;

  GemmOperand<T> columns(int64_t begin, int64_t first) const {
    const T* start = data + first + (row_ids ? 0 : begin * row_stride);
    return {start, 1, row_stride, nullptr, row_ids ? row_ids + begin : nullptr};
  }
};

/// to(i, j) = sum over entries e of expert g of left(e, i) * right(e, j) for i < m, j < n, at
/// to + g * expert_stride + i * row_stride + j * column_stride; columns i >= m_of(g) or j >= n_of(g) are zero.
template <class T, class MOf, class NOf>
void outer_products(const ExpertFfn<T>& ffn, const EntryRows<T>& left, const EntryRows<T>& right, int64_t m, int64_t n,
                    MOf m_of, NOf n_of, const bool* frozen, T* to, int64_t expert_stride, int64_t row_stride,
                    int64_t column_stride) {
  using Sum = accumulate_t<T>;
  if (column_stride != 1 && row_stride == 1) {  // rows of the gradient must run along its unit stride
    return outer_products(ffn, right, left, n, m, n_of, m_of, frozen, to, expert_stride, column_stride, row_stride);
  }
  const auto rows = row_kernels<T>();
  constexpr int64_t tile_m = 384, tile_n = 768;
  const int64_t tiles_m = ceil_div(m, tile_m), tiles_n = ceil_div(n, tile_n);
  const int64_t work = 2 * m * n * (ffn.group_offsets[ffn.num_experts] + ffn.num_experts);
  parallel_tiles(ffn.num_experts * tiles_m * tiles_n, gemm_workers(work), [&](int64_t tile, int) {
    const int64_t g = tile / (tiles_m * tiles_n);
    const int64_t first_m = tile / tiles_n % tiles_m * tile_m, size_m = std::min(tile_m, m - first_m);
    const int64_t first_n = tile % tiles_n * tile_n, size_n = std::min(tile_n, n - first_n);
    const int64_t begin = ffn.group_offsets[g], count = ffn.group_offsets[g + 1] - begin;
    const bool used = count > 0 && !(frozen && frozen[g]);
    const int64_t used_m = used ? std::clamp<int64_t>(m_of(g) - first_m, 0, size_m) : 0;
    const int64_t used_n = used_m > 0 ? std::clamp<int64_t>(n_of(g) - first_n, 0, size_n) : 0;
    T* const corner = to + g * expert_stride + first_m * row_stride + first_n * column_stride;
    const auto zero = [&](int64_t i, int64_t j) {
      for (; j < size_n; ++j) corner[i * row_stride + j * column_stride] = T(0.0f);
    };
    for (int64_t i = 0; i < size_m; ++i) zero(i, i < used_m ? used_n : 0);
    if (used_n == 0) return;
    const GemmOperand<T> a = left.columns(begin, first_m), b = right.columns(begin, first_n);
    if (column_stride == 1 && count <= gemm_max_stored_k) {
      const auto scratch = Scratch<Sum>::of_this_thread(0);
      return gemm_stored(used_m, used_n, count, a, b, corner, row_stride, scratch.workspace);
    }
    const auto scratch = Scratch<Sum>::of_this_thread(tile_m * tile_n);
    gemm(used_m, used_n, count, a, b, scratch.tile, used_n, false, scratch.workspace);
    for (int64_t i = 0; i < used_m; ++i) {
      const Sum* sums = scratch.tile + i * used_n;
      if (column_stride == 1) {
        rows.store(used_n, sums, corner + i * row_stride);
      } else {
        for (int64_t j = 0; j < used_n; ++j) corner[i * row_stride + j * column_stride] = T(sums[j]);
      }
    }
  });
}

/// to[g, c] = sum over entries e of expert g, in order, of (scales ? scales[e] : 1) * entries(e, c).
template <class T>
void bias_backward(const ExpertFfn<T>& ffn, const EntryRows<T>& entries, const accumulate_t<T>* scales, int64_t columns,
                   const bool* frozen, accumulate_t<T>* sums) {
  using Sum = accumulate_t<T>;
  const auto rows = row_kernels<T>();
  parallel_tiles(ffn.num_experts, workers_for(ffn.group_offsets[ffn.num_experts], 16), [&](int64_t g, int) {
    std::fill(sums + g * columns, sums + (g + 1) * columns, Sum(0));
    if (frozen && frozen[g]) return;
    for (int64_t e = ffn.group_offsets[g]; e < ffn.group_offsets[g + 1]; ++e) {
      const int64_t row = entries.row_ids ? entries.row_ids[e] : e;
      rows.add(columns, scales ? scales[e] : Sum(1), entries.data + row * entries.row_stride, sums + g * columns);
    }
  });
}

/// Gradients of each expert's own weights; upstream, x: the rows of dy and of the input, by entry.
template <class T>
void expert_weights_backward(const ExpertFfn<T>& ffn, const EntryRows<T>& upstream, const EntryRows<T>& x,
                             const HiddenGradients<T>& hidden, const ExpertFfnGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const int64_t parts = ffn.num_parts(), inner = ffn.intermediate;
  const auto width_of = [&](int64_t g) { return ffn.width(g); };
  if (const auto& to = gradients.down; to.weight) {
    outer_products(
        ffn, upstream, EntryRows<T>{hidden.weighted_hidden, inner, nullptr}, ffn.out_features, inner,
        [&](int64_t) { return ffn.out_features; }, width_of, gradients.frozen, to.weight, to.expert_stride,
        to.out_stride, to.in_stride);
  }
  for (int64_t part = 0; gradients.gate_up.weight && part < parts; ++part) {
    const auto& to = gradients.gate_up;
    const int64_t step = ffn.gate_up_row(part, 1) - ffn.gate_up_row(part, 0);
    outer_products(
        ffn, EntryRows<T>{hidden.dpre_activation + part * inner, parts * inner, nullptr}, x, inner, ffn.in_features,
        width_of, [&](int64_t) { return ffn.in_features; }, gradients.frozen,
        to.weight + ffn.gate_up_row(part, 0) * to.out_stride, to.expert_stride, step * to.out_stride, to.in_stride);
  }
  if (gradients.down.bias) {
    std::vector<Sum> sums(ffn.num_experts * ffn.out_features);
    bias_backward(ffn, upstream, ffn.weights, ffn.out_features, gradients.frozen, sums.data());
    for (size_t i = 0; i < sums.size(); ++i) gradients.down.bias[i] = T(sums[i]);
  }
  for (int64_t part = 0; gradients.gate_up.bias && part < parts; ++part) {
    std::vector<Sum> sums(ffn.num_experts * inner);
    const EntryRows<T> entries{hidden.dpre_activation + part * inner, parts * inner, nullptr};
    bias_backward(ffn, entries, static_cast<const Sum*>(nullptr), inner, gradients.frozen, sums.data());
    for (int64_t g = 0; g < ffn.num_experts; ++g) {
      for (int64_t j = 0; j < inner; ++j) {
        const Sum value = j < ffn.width(g) ? sums[g * inner + j] : Sum(0);
        gradients.gate_up.bias[g * parts * inner + ffn.gate_up_row(part, j)] = T(value);
      }
    }
  }
}

}  // namespace detail

/// expert_ffn_backward_reference, up to rounding. Entries of dweights past the plan's end are left to the caller.
template <class T>
void expert_ffn_backward_cpu(const ExpertFfn<T>& ffn, const T* dy, const T* pre_activation,
                             const ExpertFfnGradients<T>& gradients) {
  using Sum = accumulate_t<T>;
  const auto chunks = detail::row_chunks(ffn.group_offsets, ffn.num_experts, detail::ffn_tile_rows);
  const int64_t routed = ffn.group_offsets[ffn.num_experts], inner = ffn.intermediate;
  const Temporary<T> weighted_hidden(routed * inner), dpre_activation(routed * ffn.num_parts() * inner);
  const Temporary<Sum> dots(routed * detail::ceil_div(inner, detail::hidden_tile_columns));
  const detail::HiddenGradients<T> hidden{weighted_hidden.data(), dpre_activation.data()};
  Sum* const partial_dots = dots.data();
  detail::hidden_backward(ffn, chunks, dy, pre_activation, hidden, partial_dots);
  if (gradients.weights) detail::weights_backward(ffn, dy, partial_dots, gradients.weights);
  if (gradients.x) {
    detail::input_backward(ffn, chunks, hidden.dpre_activation, [&](const Sum* sums, int64_t first, int64_t width) {
      detail::combine_block(ffn, static_cast<const Sum*>(nullptr), sums, dy, ffn.in_features, first, width,
                            gradients.x);
    });
  }
  const detail::EntryRows<T> x{ffn.x, ffn.in_features, ffn.item_ids}, upstream{dy, ffn.out_features, ffn.item_ids};
  detail::expert_weights_backward(ffn, upstream, x, hidden, gradients);
}

}  // namespace anabranch
