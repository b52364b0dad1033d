// The gated FFN's backward on the CPU; each output element is written by one worker.
//
// 1. For each branch with rows: normalise them again, and expert_ffn_backward_cpu.hpp's first two passes give the
//    gradients of the gate and of what the branch read.
// 2. Weight gradients: groups share one matrix and are sorted by width, so the features between two neighbouring widths
//    get a product over all rows of the wider groups, which lie side by side. No row is multiplied beyond its width.
// 3. A pass over the rows takes the gradient through the norm and adds the residual's. The norm's own gradients are
//    summed per 64 rows and then in order.
//
// FLOPs: twice the forward's. Bytes: expert_ffn_backward_cpu.hpp's, and x, dy and dx.
#pragma once

#include <algorithm>
#include <vector>

#include "anabranch/experts/expert_ffn_backward_cpu.hpp"
#include "anabranch/skip/gated_ffn_backward.hpp"
#include "anabranch/skip/gated_ffn_cpu.hpp"

namespace anabranch {

namespace detail {

/// Weight gradients of groups that share one matrix, widest first. `upstream`, `input`: dy and what the branch read.
template <class T>
void shared_weights_backward(const ExpertFfn<T>& ffn, const EntryRows<T>& upstream, const EntryRows<T>& input,
                             const HiddenGradients<T>& hidden, const ExpertLinear<T>& gate_up,
                             const ExpertLinear<T>& down) {
  using Sum = accumulate_t<T>;
  const int64_t parts = ffn.num_parts(), inner = ffn.intermediate, n = ffn.in_features;
  ExpertFfn<T> slice = ffn;
  slice.num_experts = 1;
  // Slice g holds the features that group g has and group g + 1 has not; the last slice those that none has.
  int64_t end = inner;
  for (int64_t g = -1; g < ffn.num_experts; ++g) {
    const int64_t begin = g + 1 < ffn.num_experts ? ffn.width(g + 1) : 0, size = end - begin;
    const int32_t offsets[2] = {0, g < 0 ? 0 : ffn.group_offsets[g + 1]};
    slice.group_offsets = offsets;
    end = begin;
    if (size <= 0) continue;
    const auto all = [](int64_t count) { return [count](int64_t) { return count; }; };
    if (down.weight) {
      outer_products(slice, upstream, EntryRows<T>{hidden.weighted_hidden + begin, inner, nullptr}, n, size, all(n),
                     all(size), nullptr, down.weight + begin * down.in_stride, 0, down.out_stride, down.in_stride);
    }
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t row = part * inner + begin;
      const EntryRows<T> dhalf{hidden.dpre_activation + row, parts * inner, nullptr};
      if (gate_up.weight) {
        outer_products(slice, dhalf, input, size, n, all(size), all(n), nullptr,
                       gate_up.weight + row * gate_up.out_stride, 0, gate_up.out_stride, gate_up.in_stride);
      }
      if (gate_up.bias) {
        std::vector<Sum> sums(size);
        bias_backward(slice, dhalf, static_cast<const Sum*>(nullptr), size, nullptr, sums.data());
        for (int64_t j = 0; j < size; ++j) gate_up.bias[row + j] = T(sums[j]);
      }
    }
  }
  if (down.bias) {
    const int32_t offsets[2] = {0, ffn.group_offsets[ffn.num_experts]};
    slice.group_offsets = offsets;
    std::vector<Sum> sums(n);
    bias_backward(slice, upstream, ffn.weights, n, nullptr, sums.data());
    for (int64_t j = 0; j < n; ++j) down.bias[j] = T(sums[j]);
  }
}

/// The norm's weight and bias gradients, added up over calls.
template <class T>
struct NormSums {
  std::vector<accumulate_t<T>> weight, bias;
  explicit NormSums(int64_t features) : weight(features, 0), bias(features, 0) {}
};

/// dx of the branch's rows from dread, the gradient of what they read, and of the residual where `residual` is not
/// null: dx[t] = residual[t] + d(norm). dx may be null.
template <class T>
void rows_backward(const BranchRows<T>& rows, const RowNorm<T>& norm, bool normed, const T* dread, const T* residual,
                   T* dx, NormSums<T>& sums) {
  using Sum = accumulate_t<T>;
  constexpr int64_t chunk = 64;
  const auto kernels = residual_kernels<T>();
  const int64_t n = rows.by_item.in_features, chunks = ceil_div(rows.size(), chunk);
  // As many chunks at a time as keep the partial sums small; they are added in order.
  const int64_t batch = std::min<int64_t>(chunks, 64);
  std::vector<Sum> partial(normed ? 2 * batch * n : 0);
  for (int64_t first = 0; first < chunks; first += batch) {
    const int64_t count = std::min(batch, chunks - first);
    std::fill(partial.begin(), partial.end(), Sum(0));
    parallel_tiles(count, workers_for(count * chunk * n, 32768), [&](int64_t c, int) {
      const int64_t begin = (first + c) * chunk, end = std::min(begin + chunk, rows.size());
      for (int64_t e = begin; e < end; ++e) {
        const int64_t at = rows.by_item.item(e) * n;
        const T* const passed = residual ? residual + at : nullptr;
        if (normed) {
          kernels.normalize_backward(norm, n, rows.by_item.x + at, dread + e * n, passed, dx ? dx + at : nullptr,
                                     partial.data() + 2 * c * n, partial.data() + (2 * c + 1) * n);
        } else if (dx) {
          kernels.add(n, dread + e * n, passed, Sum(0), nullptr, dx + at);
        }
      }
    });
    for (int64_t c = 0; normed && c < count; ++c) {
      for (int64_t j = 0; j < n; ++j) sums.weight[j] += partial[2 * c * n + j];
      for (int64_t j = 0; j < n; ++j) sums.bias[j] += partial[(2 * c + 1) * n + j];
    }
  }
}

/// What one branch is asked for; null where not wanted.
template <class T>
struct BranchGradients {
  T* x;
  ExpertLinear<T> gate_up, down;
  accumulate_t<T>* gate;  // by row
  bool norm;
};

/// The gradients of all rows of a branch. residual: dy, or null where the rows do not keep x.
template <class T>
void branch_backward(const BranchRows<T>& rows, const Residual<T>& to, const RowNorm<T>& norm, bool normed, const T* dy,
                     const T* residual, const T* pre_activation, const BranchGradients<T>& gradients,
                     NormSums<T>& norm_sums) {
  using Sum = accumulate_t<T>;
  const int64_t routed = rows.size(), inner = rows.by_item.intermediate, n = rows.by_item.in_features;
  ExpertFfn<T> ffn = rows.by_item;
  std::vector<Sum> weights(routed);
  for (int64_t e = 0; e < routed; ++e) weights[e] = to.scale_of(ffn.item(e));
  ffn.weights = weights.data();
  const auto chunks = row_chunks(ffn.group_offsets, ffn.num_experts, ffn_tile_rows);
  const Temporary<T> weighted_hidden(routed * inner), dpre_activation(routed * ffn.num_parts() * inner);
  const Temporary<Sum> dots(routed * ceil_div(inner, hidden_tile_columns));
  const HiddenGradients<T> hidden{weighted_hidden.data(), dpre_activation.data()};
  hidden_backward(ffn, chunks, dy, pre_activation, hidden, dots.data());
  if (gradients.gate) {
    std::vector<Sum> products(routed);
    weights_backward(ffn, dy, dots.data(), products.data());
    for (int64_t e = 0; e < routed; ++e) gradients.gate[ffn.item(e)] = to.scale * products[e];
  }
  if (gradients.gate_up.weight || gradients.gate_up.bias || gradients.down.weight || gradients.down.bias) {
    rows.normalize();
    const EntryRows<T> upstream{dy, n, ffn.item_ids}, input{rows.as_read.x, n, rows.as_read.item_ids};
    if (ffn.shared) {
      shared_weights_backward(ffn, upstream, input, hidden, gradients.gate_up, gradients.down);
    } else {
      ExpertFfnGradients<T> own{};
      own.gate_up = gradients.gate_up;
      own.down = gradients.down;
      expert_weights_backward(ffn, upstream, input, hidden, own);
    }
  }
  if (!gradients.x && !gradients.norm) return;
  const Temporary<T> dread(routed * n);
  const auto row_loops = row_kernels<T>();
  input_backward(ffn, chunks, hidden.dpre_activation, [&](const Sum* sums, int64_t first, int64_t width) {
    parallel_for(routed, std::max<int64_t>(1, 32768 / width), [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) row_loops.store(width, sums + e * width, dread.data() + e * n + first);
    });
  });
  rows_backward(rows, norm, normed, dread.data(), residual, gradients.x, norm_sums);
}

/// Gradients of rows that went through no branch with weights: what the residual passes on.
template <class T>
void skipped_rows_backward(const GatedFfn<T>& problem, const RowGroups& groups, const T* dy,
                           const GatedFfnGradients<T>& gradients) {
  const int64_t n = problem.features, running = groups.offsets[problem.widths.num_groups()];
  const bool writes_x = gradients.x && problem.other.intermediate == 0;
  parallel_for(problem.num_rows, std::max<int64_t>(1, 131072 / n), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t t = groups.item_ids[e], at = t * n;
      const bool skips = e >= running;
      if (skips && gradients.gate) gradients.gate[t] = 0;
      if (gradients.base && skips) std::memcpy(gradients.base + at, dy + at, n * sizeof(T));
      if (gradients.base && !skips) std::fill_n(gradients.base + at, n, T(0.0f));
      if (!writes_x || !skips) continue;
      if (problem.skipped_add_x) {
        std::memcpy(gradients.x + at, dy + at, n * sizeof(T));
      } else {
        std::fill_n(gradients.x + at, n, T(0.0f));
      }
    }
  });
}

}  // namespace detail

/// gated_ffn_backward_reference, up to rounding. groups and the two pre_activations are the forward's.
template <class T>
void gated_ffn_backward_cpu(const GatedFfn<T>& problem, const RowGroups& groups, const T* dy, const T* pre_activation,
                            const T* other_pre_activation, const GatedFfnGradients<T>& gradients) {
  const int64_t n = problem.features;
  const bool norm = gradients.norm_weight || gradients.norm_bias, has_other = problem.other.intermediate > 0;
  detail::NormSums<T> norm_sums(n);
  detail::skipped_rows_backward(problem, groups, dy, gradients);
  detail::branch_backward(detail::branch_rows(problem, groups, true),
                          detail::Residual<T>{nullptr, nullptr, problem.gate, problem.ffn.scale}, problem.norm,
                          problem.ffn.normed, dy, problem.running_add_x ? dy : nullptr, pre_activation,
                          detail::BranchGradients<T>{gradients.x, gradients.gate_up, gradients.down, gradients.gate,
                                                     norm && problem.ffn.normed},
                          norm_sums);
  if (has_other) {
    detail::branch_backward(detail::branch_rows(problem, groups, false),
                            detail::Residual<T>{nullptr, nullptr, nullptr, problem.other.scale}, problem.norm,
                            problem.other.normed, dy, problem.skipped_add_x ? dy : nullptr, other_pre_activation,
                            detail::BranchGradients<T>{gradients.x, gradients.other_gate_up, gradients.other_down,
                                                       nullptr, norm && problem.other.normed},
                            norm_sums);
  }
  for (int64_t j = 0; gradients.norm_weight && j < n; ++j) gradients.norm_weight[j] = T(norm_sums.weight[j]);
  for (int64_t j = 0; gradients.norm_bias && j < n; ++j) gradients.norm_bias[j] = T(norm_sums.bias[j]);
}

}  // namespace anabranch
