// The gated FFN's forward on the CPU.
//
// 1. One pass over the choices sorts the rows by group (serial: one or eight bytes a row).
// 2. Rows that skip are copied, or added to their base.
// 3. Rows of a branch with weights are normalised into a compact matrix, and go through expert_ffn_cpu.hpp's two
//    products as groups that share one expert; the sums of the second one are added to the residual where they lie.
//
// Bytes: x read twice and y written once, the normalised rows twice, and what the products move. Without rows nothing
// but step 2 happens. Each group reads its prefix of the weights by itself, but so few rows that streaming them is all
// the time run as one group of the widest: zeros stand for the features that a row does not have, which adds nothing
// to its sums, and the weights are read once.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "anabranch/experts/expert_ffn_cpu.hpp"
#include "anabranch/experts/row_kernels.hpp"
#include "anabranch/skip/gated_ffn.hpp"
#include "anabranch/skip/residual_kernels.hpp"

namespace anabranch {

/// Fills `groups` from the choices: a stable counting sort.
template <class T>
void group_rows_cpu(const GatedFfn<T>& problem, const RowGroups& groups) {
  const int num_groups = problem.widths.num_groups() + 1;
  int32_t next[max_ffn_widths + 1] = {};
  for (int64_t t = 0; t < problem.num_rows; ++t) ++next[problem.widths.group_of(t)];
  groups.offsets[0] = 0;
  for (int g = 0; g < num_groups; ++g) {
    groups.offsets[g + 1] = groups.offsets[g] + next[g];
    next[g] = groups.offsets[g];
  }
  for (int64_t t = 0; t < problem.num_rows; ++t) {
    groups.item_ids[next[problem.widths.group_of(t)]++] = static_cast<int32_t>(t);
  }
}

namespace detail {

/// Up to here reading the weights once is worth more than multiplying no zeros: measured with four widths on a core
/// that reads as long as it multiplies 14 rows, 2.4 ms for 16 rows against 4.4, and even at 28.
inline constexpr int64_t max_rows_as_one = 28;

/// The rows of a branch as the problem of the experts' kernels: entry e is row item_ids[e] of x, or row e without ids.
template <class T>
class BranchRows {
 public:
  /// offsets [num_groups + 1] begins with 0. widths [num_groups] or empty. shared: all groups have the same weights.
  BranchRows(const T* x, int64_t num_rows, int64_t features, const RowNorm<T>& norm, const FfnBranch<T>& branch,
             std::vector<int32_t> offsets, const int32_t* item_ids, std::vector<int32_t> widths, bool shared)
      : norm_(norm),
        offsets_(std::move(offsets)),
        widths_(std::move(widths)),
        normed_(branch.normed ? offsets_.back() * features : 0) {
    by_item.x = x;
    by_item.item_ids = item_ids;
    by_item.gate_up = branch.gate_up;
    by_item.down = branch.down;
    by_item.group_offsets = offsets_.data();
    by_item.widths = widths_.empty() ? nullptr : widths_.data();
    by_item.num_items = num_rows;
    by_item.num_experts = static_cast<int64_t>(offsets_.size()) - 1;
    by_item.in_features = by_item.out_features = features;
    by_item.intermediate = branch.intermediate;
    by_item.activation = branch.activation;
    by_item.gated = branch.gated;
    by_item.shared = shared;
    as_read = by_item;
    if (branch.normed) as_read.x = normed_.data(), as_read.item_ids = nullptr;
  }
  BranchRows(const BranchRows&) = delete;

  int64_t size() const { return offsets_.back(); }

  /// Whether the groups run as one; `as_one` is that group.
  bool runs_as_one() const { return widths_.size() > 1 && size() <= max_rows_as_one; }
  ExpertFfn<T> as_one() const {
    ExpertFfn<T> ffn = as_read;
    ffn.num_experts = 1;
    ffn.group_offsets = one_;
    return ffn;
  }
  /// The features that a row of `as_one` does not have become zeros.
  void clear_beyond_width(T* hidden) const {
    for (size_t g = 1; g < widths_.size(); ++g) {
      for (int64_t e = offsets_[g]; e < offsets_[g + 1]; ++e) {
        std::fill(hidden + e * as_read.intermediate + widths_[g], hidden + e * as_read.intermediate + widths_[0],
                  T(0.0f));
      }
    }
  }

  /// Makes what `as_read` reads, if that is the normalised rows.
  void normalize() const {
    if (as_read.x == by_item.x) return;
    const auto rows = residual_kernels<T>();
    const int64_t n = by_item.in_features;
    parallel_for(size(), std::max<int64_t>(1, 32768 / n), [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        rows.normalize(norm_, n, by_item.x + by_item.item(e) * n, normed_.data() + e * n);
      }
    });
  }

  ExpertFfn<T> by_item{};  // rows read x, or another matrix with x's rows, by their ids
  ExpertFfn<T> as_read{};  // rows read what the branch reads: x, or their normalised form in entry order

 private:
  const RowNorm<T> norm_;
  const std::vector<int32_t> offsets_, widths_;
  const int32_t one_[2] = {0, offsets_.back()};
  const Temporary<T> normed_;
};

/// The rows of a branch of the gated FFN: of those that run, or of those that skip.
template <class T>
BranchRows<T> branch_rows(const GatedFfn<T>& problem, const RowGroups& groups, bool runs) {
  const int num_groups = problem.widths.num_groups();
  const int first = runs ? 0 : num_groups, last = runs ? num_groups : num_groups + 1;
  std::vector<int32_t> offsets(groups.offsets + first, groups.offsets + last + 1), widths;
  const int32_t* const item_ids = groups.item_ids + offsets[0];
  for (int32_t& offset : offsets) offset -= groups.offsets[first];
  for (int g = 0; runs && g < num_groups; ++g) widths.push_back(problem.widths.width_of_group(g));
  return {problem.x,          problem.num_rows, problem.features,  problem.norm, runs ? problem.ffn : problem.other,
          std::move(offsets), item_ids,         std::move(widths), true};
}

/// What a branch's rows are added to: y[t] = x[t] + base[t] + scale * gate[t] * row, without what is null.
template <class T>
struct Residual {
  const T *x, *base;
  const accumulate_t<T>* gate;
  accumulate_t<T> scale;

  accumulate_t<T> scale_of(int64_t t) const { return gate ? scale * gate[t] : scale; }
};

/// cos(x, y) of one row, 0 where one of the two is zero; in an order that depends on n alone.
template <class T>
accumulate_t<T> row_cosine(const RowKernels<T>& rows, int64_t n, const T* x, const T* y) {
  const accumulate_t<T> norms = std::sqrt(rows.dot(n, x, x)) * std::sqrt(rows.dot(n, y, y));
  return norms == 0 ? norms : rows.dot(n, x, y) / norms;
}

/// All rows of one branch into y. cosine and pre_activation may be null.
template <class T, class MakeProducts>
void branch_forward(const BranchRows<T>& rows, const Residual<T>& to, const MakeProducts& make_products, T* y,
                    accumulate_t<T>* cosine, T* pre_activation) {
  using Sum = accumulate_t<T>;
  if (rows.size() == 0) return;
  rows.normalize();
  const int64_t n = rows.by_item.in_features;
  const auto residual = residual_kernels<T>();
  const auto kernels = row_kernels<T>();
  const auto add = [&](const Sum* sums, int64_t first, int64_t width) {
    parallel_for(rows.size(), std::max<int64_t>(1, 32768 / width), [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        const int64_t t = rows.by_item.item(e), at = t * n + first;
        residual.add(width, to.x ? to.x + at : nullptr, to.base ? to.base + at : nullptr, to.scale_of(t),
                     sums + e * width, y + at);
        if (cosine && first + width == n) cosine[t] = row_cosine(kernels, n, rows.by_item.x + t * n, y + t * n);
      }
    });
  };
  const ExpertFfn<T> ffn = rows.runs_as_one() ? rows.as_one() : rows.as_read;
  const auto products = make_products(ffn);
  const auto chunks = row_chunks(ffn.group_offsets, ffn.num_experts, ffn_tile_rows);
  const Temporary<T> hidden(rows.size() * ffn.intermediate);
  gate_up_and_activate(ffn, chunks, products, hidden.data(), pre_activation);
  if (rows.runs_as_one()) rows.clear_beyond_width(hidden.data());
  down_and_combine(ffn, chunks, products, hidden.data(), add);
}

/// Products on weights as they came.
inline constexpr auto strided_products = []<class T>(const ExpertFfn<T>& ffn) { return StridedProducts<T>{ffn}; };

/// Rows that skip and have no branch with weights.
template <class T>
void copy_skipped_rows(const GatedFfn<T>& problem, const int32_t* item_ids, int64_t count, T* y) {
  const int64_t n = problem.features;
  const auto rows = residual_kernels<T>();
  const bool copies = problem.skipped_add_x != (problem.base != nullptr), all = count == problem.num_rows;
  const T* const from = problem.skipped_add_x ? problem.x : problem.base;
  parallel_for(count, std::max<int64_t>(1, 131072 / n), [&](int64_t begin, int64_t end) {
    if (copies && all) {
      std::memcpy(y + begin * n, from + begin * n, (end - begin) * n * sizeof(T));
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = item_ids[i] * n;
      if (copies) {
        std::memcpy(y + at, from + at, n * sizeof(T));
      } else {
        rows.add(n, problem.skipped_add_x ? problem.x + at : nullptr, problem.base ? problem.base + at : nullptr,
                 accumulate_t<T>(0), nullptr, y + at);
      }
    }
  });
}

}  // namespace detail

/// gated_ffn_reference, up to rounding, on rows sorted by group_rows_cpu. pre_activation [rows that run, parts *
/// intermediate], and that of the other branch, are written unless null. make_products(ffn) gives the products of the
/// main branch: strided_products, or packed ones, which read other weights than the problem's.
template <class T, class MakeProducts>
void gated_ffn_cpu(const GatedFfn<T>& problem, const RowGroups& groups, const MakeProducts& make_products, T* y,
                   accumulate_t<T>* cosine, T* pre_activation, T* other_pre_activation) {
  using Sum = accumulate_t<T>;
  const int32_t num_running = groups.offsets[problem.widths.num_groups()];
  const int64_t num_skipped = problem.num_rows - num_running;
  const int32_t* const skipped = groups.item_ids + num_running;
  for (int64_t i = 0; cosine && i < num_skipped; ++i) cosine[skipped[i]] = 1;
  const bool has_other = problem.other.intermediate > 0;
  if (!has_other) detail::copy_skipped_rows(problem, skipped, num_skipped, y);
  if (num_running > 0) {
    const T* const x = problem.running_add_x ? problem.x : nullptr;
    detail::branch_forward(detail::branch_rows(problem, groups, true),
                           detail::Residual<T>{x, nullptr, problem.gate, problem.ffn.scale}, make_products, y, cosine,
                           pre_activation);
  }
  if (has_other && num_skipped > 0) {
    const T* const x = problem.skipped_add_x ? problem.x : nullptr;
    detail::branch_forward(detail::branch_rows(problem, groups, false),
                           detail::Residual<T>{x, problem.base, nullptr, problem.other.scale}, detail::strided_products,
                           y, static_cast<Sum*>(nullptr), other_pre_activation);
  }
}

}  // namespace anabranch
