// A random gated FFN in buffers that notice what is written beside them: what the tests of its kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "anabranch/skip/gated_ffn_backward.hpp"
#include "guarded.hpp"

struct GatedFfnShape {
  int64_t num_rows, features, intermediate;
  std::vector<int32_t> widths;
  std::vector<double> share;  // of each width among the rows; the rest chooses what does not exist
  int64_t other = 0;          // intermediate size of the other branch
  int choice_bytes = 8;
  anabranch::NormKind norm = anabranch::NormKind::rms;
  bool normed = true, other_normed = false, norm_weights = true, gated = true, other_gated = true, biased = false;
  bool gate = true, base = false, running_add_x = true, adds_x = true, transposed = false;
  anabranch::Activation activation = anabranch::Activation::silu;
  int64_t capacity = -1;  // all rows
};

template <class T>
class GatedFfnCase {
 public:
  using Sum = anabranch::accumulate_t<T>;

  GatedFfnCase(const GatedFfnShape& shape_, std::mt19937& random)
      : shape(shape_),
        capacity(shape.capacity < 0 ? shape.num_rows : shape.capacity),
        parts(shape.gated ? 2 : 1),
        other_parts(shape.other_gated ? 2 : 1),
        x(random_values<T>(shape.num_rows * shape.features, random)),
        base(random_values<T>(shape.num_rows * shape.features, random)),
        dy(random_values<T>(shape.num_rows * shape.features, random)),
        norm_weight(random_values<T>(shape.features, random)),
        norm_bias(random_values<T>(shape.features, random)),
        gate_up(scaled(parts * shape.intermediate * shape.features, shape.features, random)),
        gate_up_bias(random_values<T>(parts * shape.intermediate, random)),
        down(scaled(shape.features * shape.intermediate, shape.intermediate, random)),
        down_bias(random_values<T>(shape.features, random)),
        other_gate_up(scaled(other_parts * shape.other * shape.features, shape.features, random)),
        other_gate_up_bias(random_values<T>(other_parts * shape.other, random)),
        other_down(scaled(shape.features * shape.other, std::max<int64_t>(1, shape.other), random)),
        other_down_bias(random_values<T>(shape.features, random)),
        gate(random_values<Sum>(shape.num_rows, random)),
        choices(choose(random)),
        narrow_choices(std::vector<uint8_t>(choices.data(), choices.data() + shape.num_rows)) {}

  anabranch::GatedFfn<T> problem() {
    anabranch::GatedFfn<T> out{};
    const bool has_bias = shape.norm == anabranch::NormKind::layer && shape.norm_weights;
    out.x = x.data();
    out.num_rows = shape.num_rows;
    out.features = shape.features;
    out.widths.count = static_cast<int>(shape.widths.size());
    std::copy(shape.widths.begin(), shape.widths.end(), out.widths.width);
    out.widths.choice = shape.choice_bytes == 1 ? static_cast<const void*>(narrow_choices.data()) : choices.data();
    out.widths.choice_bytes = shape.choice_bytes;
    out.gate = shape.gate ? gate.data() : nullptr;
    out.norm = {shape.norm, shape.norm_weights ? norm_weight.data() : nullptr, has_bias ? norm_bias.data() : nullptr,
                1e-5};
    out.ffn = {linear(gate_up, parts * shape.intermediate, shape.features, gate_up_bias),
               linear(down, shape.features, shape.intermediate, down_bias),
               shape.intermediate,
               shape.activation,
               shape.gated,
               shape.normed,
               Sum(0.75)};
    out.other = {linear(other_gate_up, other_parts * shape.other, shape.features, other_gate_up_bias),
                 linear(other_down, shape.features, shape.other, other_down_bias),
                 shape.other,
                 shape.other_gated ? shape.activation : anabranch::Activation::gelu,
                 shape.other_gated,
                 shape.other_normed,
                 Sum(-1.25)};
    out.base = shape.base ? base.data() : nullptr;
    out.running_add_x = shape.running_add_x;
    out.skipped_add_x = shape.adds_x;
    return out;
  }

  /// Rows by group, and what a capacity turns into rows that skip. Changes `problem`'s choices to say so.
  void group(std::vector<int32_t>& offsets, std::vector<int32_t>& items) {
    const auto widths = problem().widths;
    const int num_groups = widths.num_groups();
    for (int pass = 0; pass < 2; ++pass) {
      offsets.assign(1, 0);
      items.clear();
      for (int g = 0; g <= num_groups; ++g) {
        for (int64_t t = 0; t < shape.num_rows; ++t)
          if (widths.group_of(t) == g) items.push_back(static_cast<int32_t>(t));
        offsets.push_back(static_cast<int32_t>(items.size()));
      }
      for (int64_t e = capacity; e < offsets[num_groups]; ++e) {
        choices.data()[items[e]] = shape.widths.size();  // does not exist
        narrow_choices.data()[items[e]] = static_cast<uint8_t>(shape.widths.size());
      }
    }
  }

  GatedFfnShape shape;
  int64_t capacity, parts, other_parts;
  Guarded<T> x, base, dy, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias;
  Guarded<T> other_gate_up, other_gate_up_bias, other_down, other_down_bias;
  Guarded<Sum> gate;
  Guarded<int64_t> choices;
  Guarded<uint8_t> narrow_choices;

 private:
  anabranch::ExpertLinear<const T> linear(Guarded<T>& weight, int64_t out, int64_t in, Guarded<T>& bias) {
    return {weight.data(), -1, shape.transposed ? 1 : in, shape.transposed ? out : 1,
            shape.biased ? bias.data() : nullptr};
  }
  static std::vector<T> scaled(int64_t count, int64_t depth, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(depth)));
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = T(normal(random));
    return values;
  }
  std::vector<int64_t> choose(std::mt19937& random) const {
    std::vector<int64_t> out;
    for (int64_t t = 0; t < shape.num_rows; ++t) {
      double left = static_cast<double>(random() % 10000) / 10000;
      size_t index = 0;
      while (index < shape.share.size() && left >= shape.share[index]) left -= shape.share[index++];
      const int64_t wild[] = {200, 255, shape.choice_bytes == 8 ? INT64_MIN : 17, shape.choice_bytes == 8 ? -1 : 99};
      out.push_back(index < shape.share.size() ? static_cast<int64_t>(index) : wild[random() % 4]);
    }
    return out;
  }
};

/// Values against those of the definition, computed in double from the same inputs: the largest error, in units of T's
/// spacing at the largest expected value (at least 1).
template <class T>
void expect_near(Guarded<T>& values, const std::vector<double>& expected, double units, const char* what) {
  const double spacing = std::is_same_v<T, double>            ? 0x1p-52
                         : std::is_same_v<T, float>           ? 0x1p-23
                         : std::is_same_v<T, anabranch::half> ? 0x1p-10
                                                              : 0x1p-7;
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  expect(values.size() == static_cast<int64_t>(expected.size()), what);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = static_cast<double>(static_cast<anabranch::accumulate_t<T>>(values.data()[i]));
    expect(std::abs(value - expected[i]) <= units * spacing * scale, what);
  }
}

/// The same problem with every tensor in double.
template <class T>
class InDouble {
 public:
  explicit InDouble(const anabranch::GatedFfn<T>& given) {
    const int64_t n = given.features, cells = given.num_rows * n;
    problem.x = copy(given.x, cells);
    problem.num_rows = given.num_rows;
    problem.features = n;
    problem.widths = given.widths;
    if (given.gate) gate_.assign(given.gate, given.gate + given.num_rows);
    problem.gate = given.gate ? gate_.data() : nullptr;
    problem.norm = {given.norm.kind, copy(given.norm.weight, n), copy(given.norm.bias, n), given.norm.eps};
    problem.ffn = branch(given.ffn, n);
    problem.other = branch(given.other, n);
    problem.base = copy(given.base, cells);
    problem.running_add_x = given.running_add_x;
    problem.skipped_add_x = given.skipped_add_x;
  }
  InDouble(const InDouble&) = delete;

  const double* copy(const T* values, int64_t count) {
    if (!values) return nullptr;
    std::vector<double> out(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<anabranch::accumulate_t<T>>(values[i]);
    kept_.push_back(std::move(out));
    return kept_.back().data();
  }
  anabranch::GatedFfn<double> problem{};

 private:
  anabranch::FfnBranch<double> branch(const anabranch::FfnBranch<T>& from, int64_t n) {
    const int64_t wide = from.num_parts() * from.intermediate;
    return {{copy(from.gate_up.weight, wide * n), 0, from.gate_up.out_stride, from.gate_up.in_stride,
             copy(from.gate_up.bias, wide)},
            {copy(from.down.weight, n * from.intermediate), 0, from.down.out_stride, from.down.in_stride,
             copy(from.down.bias, n)},
            from.intermediate,
            from.activation,
            from.gated,
            from.normed,
            from.scale};
  }
  std::vector<std::vector<double>> kept_;
  std::vector<double> gate_;
};

/// The forward's buffers, NaN wherever a kernel leaves something unwritten.
template <class T>
struct GatedFfnBuffers {
  using Sum = anabranch::accumulate_t<T>;

  explicit GatedFfnBuffers(GatedFfnCase<T>& given)
      : tables(4 * given.problem().widths.num_groups() + 5),
        offsets(given.problem().widths.num_groups() + 2),
        item_ids(given.shape.num_rows),
        scales(std::vector<Sum>(static_cast<size_t>(given.shape.num_rows), Sum(NAN))),
        normed(nan(given.shape.num_rows * given.shape.features)),
        hidden(nan(given.capacity * given.shape.intermediate)),
        other_hidden(nan(given.shape.num_rows * given.shape.other)),
        y(nan(given.shape.num_rows * given.shape.features)),
        pre_activation(nan(given.capacity * given.parts * given.shape.intermediate)),
        other_pre_activation(nan(given.shape.num_rows * given.other_parts * given.shape.other)),
        dots(std::vector<Sum>(static_cast<size_t>((given.shape.features + 63) / 64 * 3 * given.capacity), Sum(NAN))),
        cosine(std::vector<Sum>(static_cast<size_t>(given.shape.num_rows), Sum(NAN))) {}

  anabranch::RowGroups groups() { return {offsets.data(), item_ids.data()}; }
  static std::vector<T> nan(int64_t count) { return std::vector<T>(static_cast<size_t>(count), T(NAN)); }

  Guarded<int32_t> tables, offsets, item_ids;
  Guarded<Sum> scales;
  Guarded<T> normed, hidden, other_hidden, y, pre_activation, other_pre_activation;
  Guarded<Sum> dots, cosine;
};
