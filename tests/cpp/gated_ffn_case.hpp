// A gated FFN to test: its operands in any type, the problem on them, and the places of its gradients.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "anabranch/skip/gated_ffn_backward.hpp"
#include "cpu_kernels.hpp"

namespace anabranch::testing {

/// What rows that skip get: nothing more, their base, a branch with weights, or both.
enum class Else { nothing, base, branch, base_and_branch };

struct GatedShape {
  int64_t rows, features, inner, other_inner;
};

struct GatedOptions {
  std::vector<int32_t> widths;  // in per cent of the intermediate features; rounded up
  bool gated, biased, weighted;
  NormKind norm;
  bool norm_weight, norm_bias;
  Else other;
  bool other_gated, other_normed;
  bool running_add_x, skipped_add_x;
  Activation activation;
  bool boolean;   // choices as bytes
  int only = -1;  // the choice of every row; -1: any
};

constexpr float untouched = 0.5f;  // in every type

template <class T>
struct GatedOperands {
  GatedOperands(const GatedShape& s, int64_t parts, int64_t other_parts)
      : x(random_values<T>(s.rows * s.features)),
        norm_weight(random_values<T>(s.features)),
        norm_bias(random_values<T>(s.features)),
        gate_up(random_values<T>(parts * s.inner * s.features, 1 / std::sqrt(s.features))),
        gate_up_bias(random_values<T>(parts * s.inner, 0.5)),
        down(random_values<T>(s.features * s.inner, 1 / std::sqrt(s.inner))),
        down_bias(random_values<T>(s.features, 0.5)),
        base(random_values<T>(s.rows * s.features)),
        other_gate_up(random_values<T>(other_parts * s.other_inner * s.features, 1 / std::sqrt(s.features))),
        other_down(random_values<T>(s.features * s.other_inner, 1 / std::sqrt(s.other_inner))),
        dy(random_values<T>(s.rows * s.features)),
        gate(random_values<accumulate_t<T>>(s.rows)) {}
  template <class From>
  explicit GatedOperands(const GatedOperands<From>& from)
      : x(converted<T>(from.x)),
        norm_weight(converted<T>(from.norm_weight)),
        norm_bias(converted<T>(from.norm_bias)),
        gate_up(converted<T>(from.gate_up)),
        gate_up_bias(converted<T>(from.gate_up_bias)),
        down(converted<T>(from.down)),
        down_bias(converted<T>(from.down_bias)),
        base(converted<T>(from.base)),
        other_gate_up(converted<T>(from.other_gate_up)),
        other_down(converted<T>(from.other_down)),
        dy(converted<T>(from.dy)),
        gate(converted<accumulate_t<T>>(from.gate)) {}

  std::vector<T> x, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias, base, other_gate_up, other_down, dy;
  std::vector<accumulate_t<T>> gate;
};

/// A matrix [out, in], turned where `turned`.
template <class T>
ExpertLinear<T> matrix(T* weight, int64_t out, int64_t in, bool turned, T* bias) {
  return {weight, 0, turned ? 1 : in, turned ? out : 1, bias};
}

struct GatedCase {
  GatedShape s;
  GatedOptions o;
  int64_t parts = o.gated ? 2 : 1, other_parts = o.other_gated ? 2 : 1;
  std::vector<int64_t> choices;
  std::vector<uint8_t> bytes;

  GatedCase(const GatedShape& shape, const GatedOptions& options) : s(shape), o(options) {
    const int64_t count = static_cast<int64_t>(o.widths.size());
    for (int64_t t = 0; t < s.rows; ++t) {
      choices.push_back(o.only >= 0 ? o.only : static_cast<int64_t>(random_bits() % count));
      bytes.push_back(static_cast<uint8_t>(choices.back()));
    }
  }

  bool has_base() const { return o.other == Else::base || o.other == Else::base_and_branch; }
  bool has_branch() const { return o.other == Else::branch || o.other == Else::base_and_branch; }
  int num_groups() const { return static_cast<int>(o.widths.size()) - (o.widths[0] == 0 ? 1 : 0); }

  void set_context(const char* type) const {
    context = std::string("gated_ffn, ") + type + ", " + std::to_string(s.rows) + " rows, " +
              std::to_string(o.widths.size()) + " widths, norm " + std::to_string(static_cast<int>(o.norm)) +
              ", else-branch " + std::to_string(static_cast<int>(o.other)) + ", every choice " + std::to_string(o.only);
  }

  template <class T>
  GatedFfn<T> problem(const GatedOperands<T>& from) const {
    GatedFfn<T> p{};
    p.x = from.x.data();
    p.num_rows = s.rows, p.features = s.features;
    p.widths.count = static_cast<int>(o.widths.size());
    for (size_t i = 0; i < o.widths.size(); ++i) {
      p.widths.width[i] = static_cast<int32_t>((o.widths[i] * s.inner + 99) / 100);
    }
    p.widths.choice = o.boolean ? static_cast<const void*>(bytes.data()) : choices.data();
    p.widths.choice_bytes = o.boolean ? 1 : 8;
    p.gate = o.weighted ? from.gate.data() : nullptr;
    p.norm = {o.norm, o.norm_weight ? from.norm_weight.data() : nullptr, o.norm_bias ? from.norm_bias.data() : nullptr,
              1e-3};
    using Sum = accumulate_t<T>;
    const bool normed = o.norm != NormKind::none;
    p.ffn = {matrix(from.gate_up.data(), parts * s.inner, s.features, o.biased,
                    o.biased ? from.gate_up_bias.data() : nullptr),
             matrix(from.down.data(), s.features, s.inner, !o.biased, o.biased ? from.down_bias.data() : nullptr),
             s.inner,
             o.activation,
             o.gated,
             normed,
             Sum(0.5)};
    if (has_branch()) {
      const T* const none = nullptr;
      p.other = {matrix(from.other_gate_up.data(), other_parts * s.other_inner, s.features, false, none),
                 matrix(from.other_down.data(), s.features, s.other_inner, o.biased, none),
                 s.other_inner,
                 Activation::gelu,
                 o.other_gated,
                 o.other_normed && normed,
                 Sum(1.5)};
    }
    p.base = has_base() ? from.base.data() : nullptr;
    p.running_add_x = o.running_add_x, p.skipped_add_x = o.skipped_add_x;
    return p;
  }
};

/// Every gradient of a case, and where the kernels write it.
template <class T>
struct GatedGradients {
  std::vector<T> x, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias, base, other_gate_up, other_down;
  std::vector<accumulate_t<T>> gate;
  static constexpr const char* names[] = {"dx",    "dnorm_weight", "dnorm_bias", "dgate_up",       "dgate_up_bias",
                                          "ddown", "ddown_bias",   "dbase",      "dother_gate_up", "dother_down",
                                          "dgate"};

  explicit GatedGradients(const GatedCase& c)
      : x(filled(c.s.rows * c.s.features)),
        norm_weight(filled(c.s.features)),
        norm_bias(filled(c.s.features)),
        gate_up(filled(c.parts * c.s.inner * c.s.features)),
        gate_up_bias(filled(c.parts * c.s.inner)),
        down(filled(c.s.features * c.s.inner)),
        down_bias(filled(c.s.features)),
        base(filled(c.s.rows * c.s.features)),
        other_gate_up(filled(c.other_parts * c.s.other_inner * c.s.features)),
        other_down(filled(c.s.features * c.s.other_inner)),
        gate(c.s.rows, untouched) {}

  GatedFfnGradients<T> places(const GatedCase& c) {
    GatedFfnGradients<T> to{};
    to.x = x.data(), to.gate = gate.data(), to.base = base.data();
    if (c.o.norm != NormKind::none) to.norm_weight = norm_weight.data(), to.norm_bias = norm_bias.data();
    to.gate_up = matrix(gate_up.data(), c.parts * c.s.inner, c.s.features, c.o.biased, gate_up_bias.data());
    to.down = matrix(down.data(), c.s.features, c.s.inner, !c.o.biased, down_bias.data());
    T* const none = nullptr;
    if (c.has_branch()) {
      to.other_gate_up = matrix(other_gate_up.data(), c.other_parts * c.s.other_inner, c.s.features, false, none);
      to.other_down = matrix(other_down.data(), c.s.features, c.s.other_inner, c.o.biased, none);
    }
    return to;
  }
  /// In the order of `names`, in the type of the sums, which holds every T.
  std::vector<std::vector<accumulate_t<T>>> sums() const {
    std::vector<std::vector<accumulate_t<T>>> all;
    for (const auto* values : {&x, &norm_weight, &norm_bias, &gate_up, &gate_up_bias, &down, &down_bias, &base,
                               &other_gate_up, &other_down}) {
      all.push_back(converted<accumulate_t<T>>(*values));
    }
    all.push_back(gate);
    return all;
  }

 private:
  static std::vector<T> filled(int64_t count) { return std::vector<T>(count, T(untouched)); }
};

}  // namespace anabranch::testing
