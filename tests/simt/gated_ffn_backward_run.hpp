// One call of the gated FFN's forward and backward on the harness, and the definition's gradients.
#pragma once

#include "anabranch/skip/gated_ffn_backward.cuh"
#include "gated_ffn_case.hpp"

template <class T, template <class> class Buffer>
struct GatedFfnGradientBuffers {
  using Sum = anabranch::accumulate_t<T>;

  explicit GatedFfnGradientBuffers(const GatedFfnShape& s)
      : x(s.num_rows * s.features),
        norm_weight(s.features),
        norm_bias(s.features),
        gate_up((s.gated ? 2 : 1) * s.intermediate * s.features),
        gate_up_bias((s.gated ? 2 : 1) * s.intermediate),
        down(s.features * s.intermediate),
        down_bias(s.features),
        base(s.num_rows * s.features),
        other_gate_up((s.other_gated ? 2 : 1) * s.other * s.features),
        other_down(s.features * s.other),
        gate(s.num_rows) {}

  /// `wanted` bits as in the op: x, gate, norm_weight, norm_bias, gate_up, its bias, down, its bias, base, other's two.
  template <class Problem>
  anabranch::GatedFfnGradients<T> pointers(const Problem& like, int wanted) {
    const auto pick = [&](int bit, auto& buffer) { return wanted >> bit & 1 ? buffer.data() : nullptr; };
    const auto linear = [](const auto& of, T* weight, T* bias) -> anabranch::ExpertLinear<T> {
      return {weight, 0, of.out_stride, of.in_stride, bias};
    };
    T* const none = nullptr;
    return {pick(0, x),
            pick(1, gate),
            pick(2, norm_weight),
            pick(3, norm_bias),
            linear(like.ffn.gate_up, pick(4, gate_up), pick(5, gate_up_bias)),
            linear(like.ffn.down, pick(6, down), pick(7, down_bias)),
            pick(8, base),
            linear(like.other.gate_up, pick(9, other_gate_up), none),
            linear(like.other.down, pick(10, other_down), none)};
  }
  Buffer<T> x, norm_weight, norm_bias, gate_up, gate_up_bias, down, down_bias, base, other_gate_up, other_down;
  Buffer<Sum> gate;
};

template <class T>
using PlainValues = std::vector<T>;

template <class T>
class GatedFfnBackwardRun {
 public:
  using Sum = anabranch::accumulate_t<T>;

  GatedFfnBackwardRun(GatedFfnCase<T>& given_, int wanted_)
      : gradients(given_.shape), given(given_), wanted(wanted_), forward(given_) {}

  /// multiprocessors: of a Hopper GPU, or 0.
  void backward(int forward_multiprocessors, int multiprocessors) {
    using anabranch::RowMoments;
    const GatedFfnShape& s = given.shape;
    anabranch::gated_ffn_cuda(given.problem(), given.capacity,
                              {forward.tables.data(), forward.scales.data(), forward.normed.data(),
                               forward.hidden.data(), forward.other_hidden.data(), nullptr},
                              forward.groups(), forward.y.data(), static_cast<Sum*>(nullptr),
                              forward.pre_activation.data(), forward.other_pre_activation.data(),
                              forward_multiprocessors, nullptr);
    GatedFfnBuffers<T> again(given);  // the forward's temporaries, made anew
    const auto nan = [](int64_t count) { return GatedFfnBuffers<T>::nan(count); };
    const auto sums = [](int64_t count) { return std::vector<Sum>(static_cast<size_t>(count), Sum(NAN)); };
    const int64_t rows = s.num_rows, dot_parts = anabranch::expert_ffn_dot_parts(s.intermediate);
    Guarded<T> weighted(nan(given.capacity * s.intermediate)), dpre(nan(forward.pre_activation.size()));
    Guarded<T> other_weighted(nan(rows * s.other)), other_dpre(nan(forward.other_pre_activation.size()));
    Guarded<T> dnormed(nan(rows * s.features));
    Guarded<Sum> dots(sums(dot_parts * given.capacity)), parts(sums(anabranch::norm_parts(rows, s.features)));
    Guarded<RowMoments<Sum>> moments(rows);
    const auto wants = [&](int bit) { return (wanted >> bit & 1) != 0; };
    const bool norm_weights = wants(2) || wants(3);
    anabranch::gated_ffn_backward_cuda<T>(
        given.problem(), given.capacity, given.dy.data(), forward.pre_activation.data(),
        forward.other_pre_activation.data(),
        {again.groups(), again.tables.data(), again.scales.data(), again.normed.data(),
         wants(6) ? weighted.data() : nullptr, dpre.data(), wants(10) ? other_weighted.data() : nullptr,
         other_dpre.data(), wants(1) ? dots.data() : nullptr, wants(0) || norm_weights ? dnormed.data() : nullptr,
         norm_weights ? moments.data() : nullptr, norm_weights ? parts.data() : nullptr},
        gradients.pointers(given.problem(), wanted), multiprocessors, nullptr);
    expect(same_bits(again.offsets.values(), forward.offsets.values()) &&
               same_bits(again.item_ids.values(), forward.item_ids.values()),
           "the backward's groups are the forward's");
  }

  void expect_right(double units) {
    std::vector<int32_t> offsets, items;
    given.group(offsets, items);  // what does not fit into the capacity skips
    InDouble<T> exact(given.problem());
    GatedFfnGradientBuffers<double, PlainValues> right(given.shape);
    const double* dy = exact.copy(given.dy.data(), given.dy.size());
    anabranch::gated_ffn_backward_reference(exact.problem, dy, right.pointers(exact.problem, 0x7ff));
    const auto compare = [&](int bit, auto& values, const std::vector<double>& expected, const char* what) {
      if (wanted >> bit & 1) expect_near(values, expected, units, what);
    };
    compare(0, gradients.x, right.x, "dx");
    if (wanted >> 1 & 1) expect_near(gradients.gate, right.gate, sizeof(T) < 4 ? 2e5 : units, "dgate");
    compare(2, gradients.norm_weight, right.norm_weight, "dnorm_weight");
    compare(3, gradients.norm_bias, right.norm_bias, "dnorm_bias");
    compare(4, gradients.gate_up, right.gate_up, "dgate_up");
    compare(5, gradients.gate_up_bias, right.gate_up_bias, "dgate_up_bias");
    compare(6, gradients.down, right.down, "ddown");
    compare(7, gradients.down_bias, right.down_bias, "ddown_bias");
    compare(8, gradients.base, right.base, "dbase");
    compare(9, gradients.other_gate_up, right.other_gate_up, "dother_gate_up");
    compare(10, gradients.other_down, right.other_down, "dother_down");
  }

  GatedFfnGradientBuffers<T, Guarded> gradients;

 private:
  GatedFfnCase<T>& given;
  int wanted;
  GatedFfnBuffers<T> forward;
};
