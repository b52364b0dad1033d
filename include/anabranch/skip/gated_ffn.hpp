// The gated FFN: rows of the residual stream that run a feed-forward block, each over a prefix of its width, and what
// happens to the rows that skip it. What it computes, and its plain-loop definition.
//
//   y[t] = x[t] + ffn.scale * gate[t] * f(norm(x[t]))   where width(t) > 0; f cut to its first width(t) features
//   y[t] = x[t] + base[t] + other.scale * f'(x[t])      where width(t) = 0; f' of norm(x[t]) if it is normed
//
// each without x[t] where the problem says so, and f of n being
//
//   down @ (act(gate @ n + gate_bias) * (up @ n + up_bias)) + down_bias        without `gated` no up half
//
// width(t) = widths.width[choice[t]]. Rows are sorted by width, widest first, the skipped ones last: group g of
// `groups` rows shares one width, so every product is a grouped one with one matrix for all (ExpertFfn::shared).
// cosine[t] = cos(x[t], y[t]) of rows that ran, 0 where one of the two is zero; 1 for the others.
//
// FLOPs: 6 * features * width(t) for each row that runs (gated). Bytes: the matrices' first max(width) features once,
// x and y. Floor: the larger of the two over what the machine can do; no row that skips costs more than a copy.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "anabranch/core/scalar.hpp"
#include "anabranch/experts/expert_ffn.hpp"
#include "anabranch/skip/row_norm.hpp"

namespace anabranch {

inline constexpr int max_ffn_widths = 16;

/// The widths that rows may choose, ascending; one index for each row.
struct FfnWidths {
  int count;
  int32_t width[max_ffn_widths];
  const void* choice;  // [num_rows], of choice_bytes 1 (bool) or 8 (int64)
  int choice_bytes;

  /// Groups of rows that run. Group num_groups() is that of the rows that skip.
  ANABRANCH_HOST_DEVICE int num_groups() const { return count - (width[0] == 0 ? 1 : 0); }
  ANABRANCH_HOST_DEVICE int64_t choice_of(int64_t row) const {
    return choice_bytes == 1 ? static_cast<const uint8_t*>(choice)[row] : static_cast<const int64_t*>(choice)[row];
  }
  /// A choice that does not exist skips.
  ANABRANCH_HOST_DEVICE int group_of_choice(int64_t index) const {
    return index < 0 || index >= count || width[index] == 0 ? num_groups() : count - 1 - static_cast<int>(index);
  }
  ANABRANCH_HOST_DEVICE int group_of(int64_t row) const { return group_of_choice(choice_of(row)); }
  ANABRANCH_HOST_DEVICE int32_t width_of_group(int group) const { return width[count - 1 - group]; }
};

/// A feed-forward block; its weights are one expert's.
template <class T>
struct FfnBranch {
  ExpertLinear<const T> gate_up, down;  // expert_stride is not read
  int64_t intermediate;                 // 0: there is no such branch
  Activation activation;
  bool gated, normed;
  accumulate_t<T> scale;

  ANABRANCH_HOST_DEVICE int64_t num_parts() const { return gated ? 2 : 1; }
};

template <class T>
struct GatedFfn {
  const T* x;  // [num_rows, features]
  int64_t num_rows, features;
  FfnWidths widths;
  const accumulate_t<T>* gate;  // [num_rows] or null for 1
  RowNorm<T> norm;
  FfnBranch<T> ffn, other;
  const T* base;       // [num_rows, features] or null for 0: rows that skip get it
  bool running_add_x;  // whether x itself is in the result of rows that run
  bool skipped_add_x;  // and of those that skip

  ANABRANCH_HOST_DEVICE bool adds_x(bool runs) const { return runs ? running_add_x : skipped_add_x; }
};

/// Rows by group: those of group g are item_ids[offsets[g] .. offsets[g + 1]], ascending.
struct RowGroups {
  int32_t* offsets;   // [num_groups + 2], that of the skipped rows last
  int32_t* item_ids;  // [num_rows]
};

namespace detail {

/// out += scale * f(input), f cut to `width` features.
template <class T>
void ffn_row_reference(const FfnBranch<T>& ffn, int64_t features, int64_t width, const T* input, accumulate_t<T> scale,
                       accumulate_t<T>* out) {
  using Sum = accumulate_t<T>;
  for (int64_t o = 0; ffn.down.bias && o < features; ++o) out[o] += scale * static_cast<Sum>(ffn.down.bias[o]);
  for (int64_t j = 0; j < width; ++j) {
    Sum half[2] = {0, 1};
    for (int64_t part = 0; part < ffn.num_parts(); ++part) {
      const int64_t row = part * ffn.intermediate + j;
      const T* w = ffn.gate_up.weight + row * ffn.gate_up.out_stride;
      half[part] = ffn.gate_up.bias ? static_cast<Sum>(ffn.gate_up.bias[row]) : Sum(0);
      for (int64_t i = 0; i < features; ++i) {
        half[part] += static_cast<Sum>(w[i * ffn.gate_up.in_stride]) * static_cast<Sum>(input[i]);
      }
    }
    const Sum hidden = activate(ffn.activation, half[0]).value * half[1];
    for (int64_t o = 0; o < features; ++o) {
      const T w = ffn.down.weight[o * ffn.down.out_stride + j * ffn.down.in_stride];
      out[o] += scale * static_cast<Sum>(w) * hidden;
    }
  }
}

}  // namespace detail

/// Writes y [num_rows, features], and cosine [num_rows] if it is not null.
template <class T>
void gated_ffn_reference(const GatedFfn<T>& problem, T* y, accumulate_t<T>* cosine) {
  using Sum = accumulate_t<T>;
  const int64_t n = problem.features;
  std::vector<Sum> sum(n);
  std::vector<T> normed(n);
  for (int64_t t = 0; t < problem.num_rows; ++t) {
    const int group = problem.widths.group_of(t);
    const bool runs = group < problem.widths.num_groups();
    const FfnBranch<T>& ffn = runs ? problem.ffn : problem.other;
    const int64_t width = runs ? problem.widths.width_of_group(group) : problem.other.intermediate;
    const T* x = problem.x + t * n;
    for (int64_t j = 0; j < n; ++j) {
      sum[j] = problem.adds_x(runs) ? static_cast<Sum>(x[j]) : Sum(0);
      if (!runs && problem.base) sum[j] += static_cast<Sum>(problem.base[t * n + j]);
    }
    if (ffn.normed) normalize_reference(problem.norm, n, x, normed.data());
    const Sum scale = runs && problem.gate ? ffn.scale * problem.gate[t] : ffn.scale;
    if (width > 0) detail::ffn_row_reference(ffn, n, width, ffn.normed ? normed.data() : x, scale, sum.data());
    Sum xx = 0, xy = 0, yy = 0;
    for (int64_t j = 0; j < n; ++j) {
      y[t * n + j] = T(sum[j]);
      const Sum a = static_cast<Sum>(x[j]), b = static_cast<Sum>(y[t * n + j]);
      xx += a * a, xy += a * b, yy += b * b;
    }
    const Sum norms = std::sqrt(xx) * std::sqrt(yy);
    if (cosine) cosine[t] = !runs ? Sum(1) : norms == 0 ? Sum(0) : xy / norms;
  }
}

}  // namespace anabranch
