// A random expert FFN in buffers that notice what is written beside them: what the tests of the CUDA kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "anabranch/experts/expert_ffn_backward.hpp"
#include "guarded.hpp"

struct ExpertFfnShape {
  int64_t num_items, in_features, intermediate, out_features;
  std::vector<int64_t> rows;  // entries of each group: experts, then zero groups, then identity groups
  int64_t num_zero = 0, num_identity = 0, spare = 0;  // spare: capacity beyond the entries
  bool interleaved = false, biased = false, narrow = false, weighted = true;
};

template <class T>
class ExpertFfnCase {
 public:
  using Sum = anabranch::accumulate_t<T>;

  ExpertFfnCase(const ExpertFfnShape& shape_, std::mt19937& random)
      : shape(shape_),
        num_experts(static_cast<int64_t>(shape.rows.size()) - shape.num_zero - shape.num_identity),
        capacity(entries() + shape.spare),
        x(random_values<T>(shape.num_items * shape.in_features, random)),
        gate_up(scaled(num_experts * 2 * shape.intermediate * shape.in_features, shape.in_features, random)),
        gate_up_bias(random_values<T>(num_experts * 2 * shape.intermediate, random)),
        down(scaled(num_experts * shape.out_features * shape.intermediate, shape.intermediate, random)),
        down_bias(random_values<T>(num_experts * shape.out_features, random)),
        weights(random_values<Sum>(capacity, random)),
        group_offsets(offsets()),
        item_ids(items(random)),
        item_offsets(shape.num_items + 1),
        entry_ids(capacity),
        widths(std::vector<int32_t>(static_cast<size_t>(num_experts))) {
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t choices[] = {shape.intermediate, shape.intermediate / 2 - 3, 0};
      widths.data()[e] = static_cast<int32_t>(choices[e % 3]);
    }
    int64_t at = 0;
    for (int64_t t = 0; t < shape.num_items; ++t) {
      item_offsets.data()[t] = static_cast<int32_t>(at);
      for (int64_t e = 0; e < entries(); ++e)
        if (item_ids.data()[e] == t) entry_ids.data()[at++] = static_cast<int32_t>(e);
    }
    item_offsets.data()[shape.num_items] = static_cast<int32_t>(at);
    std::fill(entry_ids.data() + at, entry_ids.data() + capacity, 0);
  }

  anabranch::ExpertFfn<T> problem() {
    anabranch::ExpertFfn<T> ffn{};
    const int64_t h = shape.in_features, i = shape.intermediate, o = shape.out_features;
    ffn.x = x.data();
    ffn.gate_up = {gate_up.data(), 2 * i * h, h, 1, shape.biased ? gate_up_bias.data() : nullptr};
    ffn.down = {down.data(), o * i, i, 1, shape.biased ? down_bias.data() : nullptr};
    ffn.group_offsets = group_offsets.data();
    ffn.item_ids = item_ids.data();
    ffn.weights = shape.weighted ? weights.data() : nullptr;
    ffn.item_offsets = item_offsets.data();
    ffn.entry_ids = entry_ids.data();
    ffn.widths = shape.narrow ? widths.data() : nullptr;
    ffn.num_items = shape.num_items;
    ffn.num_experts = num_experts;
    ffn.num_zero = shape.num_zero;
    ffn.num_identity = shape.num_identity;
    ffn.in_features = h;
    ffn.intermediate = i;
    ffn.out_features = o;
    ffn.activation = anabranch::Activation::silu;
    ffn.gated = true;
    ffn.interleaved = shape.interleaved;
    return ffn;
  }

  /// NaN in the weights that a width keeps out of the results: of both matrices from the next multiple of 64 on, and of
  /// one of them, which depends on the product, from the width on.
  void poison_beyond_widths(bool all_of_gate_up, bool all_of_down) {
    const auto ffn = problem();
    const auto after = [](int64_t width, bool all) { return all ? width : (width + 63) / 64 * 64; };
    for (int64_t e = 0; e < num_experts; ++e) {
      for (int64_t j = after(ffn.width(e), all_of_gate_up); j < shape.intermediate; ++j) {
        for (int64_t i = 0; i < 2 * shape.in_features; ++i) {
          const int64_t row = ffn.gate_up_row(i % 2, j);
          gate_up.data()[e * ffn.gate_up.expert_stride + row * shape.in_features + i / 2] = T(NAN);
        }
      }
      for (int64_t j = after(ffn.width(e), all_of_down); j < shape.intermediate; ++j)
        for (int64_t i = 0; i < shape.out_features; ++i)
          down.data()[e * ffn.down.expert_stride + i * shape.intermediate + j] = T(NAN);
    }
  }

  int64_t entries() const {
    int64_t total = 0;
    for (const int64_t rows : shape.rows) total += rows;
    return total;
  }
  int64_t routed() { return group_offsets.data()[num_experts]; }

  ExpertFfnShape shape;
  int64_t num_experts, capacity;
  Guarded<T> x, gate_up, gate_up_bias, down, down_bias;
  Guarded<Sum> weights;
  Guarded<int32_t> group_offsets, item_ids, item_offsets, entry_ids, widths;

 private:
  static std::vector<T> scaled(int64_t count, int64_t depth, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(depth)));
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = T(normal(random));
    return values;
  }
  std::vector<int32_t> offsets() const {
    std::vector<int32_t> out = {0};
    for (const int64_t rows : shape.rows) out.push_back(out.back() + static_cast<int32_t>(rows));
    return out;
  }
  /// Each group's items ascend and differ; what lies past the end looks like an item.
  std::vector<int32_t> items(std::mt19937& random) const {
    std::vector<int32_t> out;
    std::vector<int32_t> all(static_cast<size_t>(shape.num_items));
    for (size_t t = 0; t < all.size(); ++t) all[t] = static_cast<int32_t>(t);
    for (const int64_t rows : shape.rows) {
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + rows);
      out.insert(out.end(), all.begin(), all.begin() + rows);
    }
    out.resize(static_cast<size_t>(capacity), 0);
    return out;
  }
};

/// Largest difference, absolute below 1 and relative above.
template <class T>
double largest_error(const T* values, const T* expected, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double right = static_cast<double>(expected[i]), error = std::abs(static_cast<double>(values[i]) - right);
    if (!(error / std::max(1.0, std::abs(right)) <= largest)) largest = error / std::max(1.0, std::abs(right));
    if (error != error) return INFINITY;
  }
  return largest;
}
