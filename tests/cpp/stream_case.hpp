// A random stream step for the tests of the CPU kernels: its options, its operands, and the same in double.
#pragma once

#include "anabranch/mixers/streams_cpu.hpp"
#include "mixer_case.hpp"

namespace anabranch::testing {

struct StepOptions {
  MixerKind mixer = MixerKind::sinkhorn;
  GateKind gates = GateKind::sigmoid;
  bool weighted = true, per_stream = false, per_segment = false, centered = false, squash = false;
  bool implicit_gradient = false, transposed = false;
};

struct StepCase {
  StreamShape shape;
  StepOptions o;

  CoefficientMap map() const {
    CoefficientMap out;
    out.gates = {o.gates, 1e-3, 2, 1e-2, 1.5};
    out.mixer = mixer_of(o.mixer, static_cast<int>(shape.streams));
    out.mixer.implicit_gradient = o.implicit_gradient;
    out.mixer.transposed_logits = out.mixer.transposed_matrix = o.transposed;
    out.per_stream = o.per_stream;
    return out;
  }
  int64_t segments() const { return o.per_segment ? shape.streams : 1; }
  int64_t logits() const { return map().num_logits(); }
  int64_t part() const { return shape.width() / segments(); }
  int64_t weights() const { return o.weighted ? logits() / segments() * part() : 0; }
  int64_t size() const { return shape.streams * (shape.streams + 2); }
  int64_t kept() const { return o.weighted ? logits() + 2 * segments() : 0; }
  int64_t streams() const { return shape.tokens * shape.width(); }
  int64_t stream() const { return shape.tokens * shape.channels; }

  template <class T>
  void name_context() const {
    context = std::string("streams, ") + type_name<T>() + ", " + std::to_string(shape.tokens) + " tokens of " +
              std::to_string(shape.streams) + " x " + std::to_string(shape.channels) + ", mixer " +
              std::to_string(static_cast<int>(o.mixer)) + ", gates " + std::to_string(static_cast<int>(o.gates)) +
              (o.weighted ? "" : ", no weight") + (o.per_stream ? ", per stream" : "") +
              (o.per_segment ? ", segments" : "") + (o.centered ? ", centered" : "") + (o.squash ? ", squash" : "");
  }
};

/// What a step reads. `before`: the coefficients of the step before, which lag.
template <class T>
struct StepOperands {
  using Sum = accumulate_t<T>;

  explicit StepOperands(const StepCase& c)
      : x(random_values<T>(c.streams())),
        y(random_values<T>(c.stream())),
        du(random_values<T>(c.stream())),
        dnext(random_values<T>(c.streams())),
        dx(random_values<T>(c.streams())),
        weight(random_values<Sum>(c.weights(), 1 / std::sqrt(c.part()))),
        scale(random_values<Sum>(c.logits())),
        bias(random_values<Sum>(c.logits())),
        before(random_values<Sum>(c.shape.tokens * c.size())),
        dcoefficients(random_values<Sum>(c.shape.tokens * c.size())) {}
  template <class From>
  explicit StepOperands(const StepOperands<From>& from)
      : x(converted<T>(from.x)),
        y(converted<T>(from.y)),
        du(converted<T>(from.du)),
        dnext(converted<T>(from.dnext)),
        dx(converted<T>(from.dx)),
        weight(converted<Sum>(from.weight)),
        scale(converted<Sum>(from.scale)),
        bias(converted<Sum>(from.bias)),
        before(converted<Sum>(from.before)),
        dcoefficients(converted<Sum>(from.dcoefficients)) {}

  StreamProjection<T> projection(const StepCase& c) const {
    return {c.o.weighted ? weight.data() : nullptr,
            scale.data(),
            bias.data(),
            c.segments(),
            1e-5,
            c.o.centered,
            c.o.squash,
            c.map()};
  }

  /// Bit i of `mask`: whether there is gradient i.
  StreamPreUpstream<T> upstream(unsigned mask) const {
    return {mask & 1 ? du.data() : nullptr, mask & 2 ? dcoefficients.data() : nullptr,
            mask & 4 ? dnext.data() : nullptr, mask & 8 ? dx.data() : nullptr};
  }

  std::vector<T> x, y, du, dnext, dx;
  std::vector<Sum> weight, scale, bias, before, dcoefficients;
};

/// Every mixer with every number of streams; gates, shapes and options take turns.
inline std::vector<StepCase> every_mixer() {
  std::vector<StepCase> out;
  constexpr int64_t tokens[] = {1, 5, 29, 20}, channels[] = {3, 37, 64};
  for (const MixerKind kind : mixer_kinds) {
    for (int64_t n = kMinStreams; n <= kMaxStreams; ++n) {
      const auto turn = out.size();
      StepOptions o{.mixer = kind, .gates = static_cast<GateKind>(turn % 3)};
      o.weighted = turn % 7 != 3;
      o.centered = turn % 2;
      o.squash = turn % 5 == 1;
      o.transposed = turn % 4 == 2;
      o.implicit_gradient = turn % 16 == 0;
      StepCase c{{tokens[turn % 4], n, channels[turn % 3]}, o};
      const bool divides = c.map().mixer.num_logits() % n == 0;
      c.o.per_segment = divides && turn / 2 % 2;
      c.o.per_stream = divides && o.gates != GateKind::softmax && turn / 3 % 2;
      out.push_back(c);
    }
  }
  return out;
}

/// Several workers, groups and blocks of channels; and no tokens.
inline std::vector<StepCase> large_and_empty() {
  return {
      {{200, 4, 130}, {}},
      {{200, 8, 130}, {.mixer = MixerKind::cayley, .gates = GateKind::softmax, .per_segment = true, .centered = true}},
      {{1200, 2, 67},
       {.mixer = MixerKind::unconstrained,
        .gates = GateKind::linear,
        .per_stream = true,
        .per_segment = true,
        .squash = true}},
      {{140, 5, 64}, {.mixer = MixerKind::permutation_mixture, .weighted = false}},
      {{0, 3, 8}, {.centered = true}},
      {{0, 3, 8}, {.mixer = MixerKind::identity, .weighted = false}},
  };
}

/// Streams that are written past the caches, while half of them are not. Both have whole tiles.
template <class T>
StepCase streaming_case() {
  const int64_t tokens = 16576 / static_cast<int64_t>(sizeof(T));
  const bool holds = detail::is_streaming<T>({tokens, 4, 64}) && !detail::is_streaming<T>({tokens / 2, 4, 64}) &&
                     tokens % (2 * detail::kTileTokens) == 0;
  expect(holds, "the streams have another size than streaming begins at");
  return {{tokens, 4, 64}, {}};
}

}  // namespace anabranch::testing
