// The expert FFN and its backward on the harness: against the definitions in double, for every dtype and option, with
// false ids, NaN weights and NaN activations past the plan's end and beyond an expert's width, and ids out of range.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "anabranch/experts/expert_ffn_backward.cuh"
#include "guarded.hpp"
#include "routed_plan.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

struct Options {
  bool gated, interleaved, transposed, biased, narrow, frozen, weighted;
  int64_t num_zero, num_identity;
  Activation activation;
};

struct Shape {
  int64_t items, experts, in, inner, out, capacity;
  double density;
};

/// Tensors of one call in type T; the first of a pair of these is rounded, the second holds the same values in double.
template <class T>
struct Tensors {
  template <class From>
  static std::vector<T> converted(const std::vector<From>& values) {
    std::vector<T> to(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      to[i] = T(static_cast<accumulate_t<T>>(static_cast<accumulate_t<From>>(values[i])));
    }
    return to;
  }
  template <class From>
  explicit Tensors(const From& from)
      : x(converted(from.x)),
        gate_up(converted(from.gate_up)),
        gate_up_bias(converted(from.gate_up_bias)),
        down(converted(from.down)),
        down_bias(converted(from.down_bias)),
        dy(converted(from.dy)),
        saved(converted(from.saved)) {
    weights.assign(from.weights.begin(), from.weights.end());
  }
  Tensors(const Shape& s, int64_t parts, std::mt19937& random) {
    const auto scaled = [&](int64_t count, double scale) {
      std::vector<T> values = random_values<T>(count, random);
      for (T& value : values) value = T(static_cast<accumulate_t<T>>(value) * static_cast<accumulate_t<T>>(scale));
      return values;
    };
    x = scaled(s.items * s.in, 1);
    gate_up = scaled(s.experts * parts * s.inner * s.in + 11 * s.experts, 1 / std::sqrt(s.in));
    gate_up_bias = scaled(s.experts * parts * s.inner, 0.5);
    down = scaled(s.experts * s.out * s.inner + 5 * s.experts, 1 / std::sqrt(s.inner));
    down_bias = scaled(s.experts * s.out, 0.5);
    weights = random_values<accumulate_t<T>>(s.capacity, random);
    dy = scaled(s.items * s.out, 1);
    saved = scaled(s.capacity * parts * s.inner, 1);
  }

  std::vector<T> x, gate_up, gate_up_bias, down, down_bias, dy, saved;
  std::vector<accumulate_t<T>> weights;
};

/// A matrix per expert, [out, in] or turned, with `gap` elements between experts.
template <class T>
ExpertLinear<T> linear(T* weight, int64_t out, int64_t in, bool transposed, int64_t gap, T* bias) {
  return {weight, out * in + gap, transposed ? 1 : in, transposed ? out : 1, bias};
}

template <class T>
ExpertFfn<T> problem(const Shape& s, const Options& o, const TestPlan& plan, const Tensors<T>& t,
                     const std::vector<int32_t>& widths) {
  const int64_t parts = o.gated ? 2 : 1;
  ExpertFfn<T> ffn{};
  ffn.x = t.x.data();
  ffn.gate_up = linear<const T>(t.gate_up.data(), parts * s.inner, s.in, o.transposed, 11,
                                o.biased ? t.gate_up_bias.data() : nullptr);
  ffn.down = linear<const T>(t.down.data(), s.out, s.inner, o.transposed, 5, o.biased ? t.down_bias.data() : nullptr);
  ffn.group_offsets = plan.offsets.data();
  ffn.item_ids = plan.items.data();
  ffn.weights = o.weighted ? t.weights.data() : nullptr;
  ffn.item_offsets = plan.item_offsets.data();
  ffn.entry_ids = plan.entry_ids.data();
  ffn.widths = o.narrow ? widths.data() : nullptr;
  ffn.num_items = s.items;
  ffn.num_experts = s.experts;
  ffn.num_zero = o.num_zero;
  ffn.num_identity = o.num_identity;
  ffn.in_features = s.in;
  ffn.intermediate = s.inner;
  ffn.out_features = s.out;
  ffn.activation = o.activation;
  ffn.gated = o.gated;
  ffn.interleaved = o.interleaved;
  return ffn;
}

/// values against expected: the largest error in units of T's spacing at the largest expected value (at least 1).
template <class T>
void expect_close(const std::vector<T>& values, const std::vector<double>& expected, double units, const char* what) {
  const double spacing = std::is_same_v<T, double>     ? 0x1p-52
                         : std::is_same_v<T, float>    ? 0x1p-23
                         : std::is_same_v<T, bfloat16> ? 0x1p-7
                                                       : 0x1p-10;
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  expect(values.size() == expected.size(), what);
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(static_cast<double>(static_cast<accumulate_t<T>>(values[i])) - expected[i]);
    expect(error <= units * spacing * scale, what);
  }
}

/// Gradient buffers of one call; `wanted` bits as in the op.
template <class T, template <class> class Buffer>
struct Gradients {
  Gradients(const Shape& s, int64_t parts)
      : x(s.items * s.in),
        gate_up(s.experts * parts * s.inner * s.in),
        gate_up_bias(s.experts * parts * s.inner),
        down(s.experts * s.out * s.inner),
        down_bias(s.experts * s.out),
        weights(s.capacity) {}
  ExpertFfnGradients<T> pointers(const Shape& s, const Options& o, const bool* frozen, int wanted) {
    const auto pick = [&](int bit, auto& buffer) { return wanted >> bit & 1 ? buffer.data() : nullptr; };
    ExpertFfnGradients<T> to{};
    to.x = pick(0, x);
    to.gate_up = linear<T>(pick(1, gate_up), (o.gated ? 2 : 1) * s.inner, s.in, o.transposed, 0, pick(2, gate_up_bias));
    to.down = linear<T>(pick(3, down), s.out, s.inner, o.transposed, 0, pick(4, down_bias));
    to.weights = pick(5, weights);
    to.frozen = o.frozen ? frozen : nullptr;
    return to;
  }
  Buffer<T> x, gate_up, gate_up_bias, down, down_bias;
  Buffer<accumulate_t<T>> weights;
};

template <class T>
using Values = std::vector<T>;

template <class T>
void check_ffn(const Shape& shape, const Options& options, int wanted, std::mt19937& random) {
  using Sum = accumulate_t<T>;
  const int64_t parts = options.gated ? 2 : 1, groups = shape.experts + options.num_zero + options.num_identity;
  const TestPlan plan(shape.items, groups, shape.capacity, shape.density, random);
  const int64_t experts_end = plan.offsets[shape.experts];
  std::vector<int32_t> widths(shape.experts);
  for (auto& width : widths) width = static_cast<int32_t>(random() % (shape.inner + 1));
  const bool frozen[8] = {false, true, false, false, true, false, false, true};

  Tensors<T> tensors(shape, parts, random);
  const Tensors<double> exact(tensors);
  std::fill(tensors.weights.begin() + plan.num_entries(), tensors.weights.end(), Sum(NAN));
  const ExpertFfn<T> ffn = problem(shape, options, plan, tensors, widths);
  const ExpertFfn<double> definition = problem(shape, options, plan, exact, widths);
  const double units = sizeof(T) < 4 ? 6 : 150;

  Guarded<int32_t> schedule(row_tiles_scratch(shape.experts));
  const int64_t inner = shape.inner, saved_size = shape.capacity * parts * inner;
  Guarded<T> hidden(shape.capacity * inner), y(shape.items * shape.out, 1);
  Guarded<T> pre_activation(std::vector<T>(saved_size, T(-77.0f)));
  Guarded<Sum> sums(shape.capacity * std::max(shape.in, shape.out));
  std::vector<double> expected(y.size()), expected_pre(saved_size, -77.0);
  expert_ffn_reference(definition, expected.data(), expected_pre.data());
  expert_ffn_cuda(ffn, shape.capacity, {schedule.data(), hidden.data(), sums.data()}, y.data(), pre_activation.data(),
                  nullptr);
  expect_close(y.values(), expected, units, "expert_ffn");
  expect_close(pre_activation.values(), expected_pre, units, "pre_activation, and what it leaves untouched");
  const auto trained = y.values();
  expert_ffn_cuda(ffn, shape.capacity, {schedule.data(), hidden.data(), sums.data()}, y.data(),
                  static_cast<T*>(nullptr), nullptr);
  expect(same_bits(y.values(), trained), "inference and training agree");

  std::vector<T> saved = tensors.saved;
  for (int64_t g = 0; g < shape.experts; ++g) {
    for (int64_t i = plan.offsets[g] * parts; i < plan.offsets[g + 1] * parts; ++i) {
      for (int64_t j = ffn.width(g); j < inner; ++j) saved[i * inner + j] = T(NAN);
    }
  }
  std::fill(saved.begin() + experts_end * parts * inner, saved.end(), T(NAN));
  Gradients<T, Guarded> gradients(shape, parts);
  Gradients<double, Values> reference(shape, parts);
  expert_ffn_backward_reference(definition, exact.dy.data(), exact.saved.data(),
                                reference.pointers(shape, options, frozen, 63));
  Guarded<T> weighted_hidden(shape.capacity * inner), dpre(saved_size);
  Guarded<Sum> partial_dots(shape.capacity * expert_ffn_dot_parts(inner));
  const auto wants = [&](int bit) { return (wanted >> bit & 1) != 0; };
  const ExpertFfnBackwardScratch<T> scratch{schedule.data(), wants(3) ? weighted_hidden.data() : nullptr, dpre.data(),
                                            wants(5) ? partial_dots.data() : nullptr, wants(0) ? sums.data() : nullptr};
  expert_ffn_backward_cuda(ffn, shape.capacity, tensors.dy.data(), saved.data(), scratch,
                           gradients.pointers(shape, options, frozen, wanted), nullptr);
  if (wants(0)) expect_close(gradients.x.values(), reference.x, units, "dx");
  if (wants(1)) expect_close(gradients.gate_up.values(), reference.gate_up, units, "dgate_up");
  if (wants(2)) expect_close(gradients.gate_up_bias.values(), reference.gate_up_bias, units, "dgate_up_bias");
  if (wants(3)) expect_close(gradients.down.values(), reference.down, units, "ddown");
  if (wants(4)) expect_close(gradients.down_bias.values(), reference.down_bias, units, "ddown_bias");
  if (wants(5)) {
    expect_close(gradients.weights.values(), reference.weights, 150, "dweights, zero past the plan's end");
  }
  for (int64_t g = 0; wants(1) && g < shape.experts; ++g) {
    const bool zero = plan.offsets[g] == plan.offsets[g + 1] || (options.frozen && frozen[g]);
    const int64_t size = parts * inner * shape.in;
    for (int64_t i = g * size; zero && i < (g + 1) * size; ++i) {
      expect(static_cast<Sum>(gradients.gate_up.data()[i]) == 0, "gradients of idle and frozen experts are zero");
    }
  }
}

/// Every third combination of layouts, a different third from round to round: all of them in two thread orders.
template <class T>
void check_dtype(unsigned round, std::mt19937& random) {
  const auto bit = [&] { return random() % 2 != 0; };
  unsigned turn = 0;
  for (const auto& [gated, interleaved] : {std::pair{true, false}, {true, true}, {false, false}}) {
    for (const bool transposed : {false, true}) {
      for (const bool extra : {false, true}) {  // zero and identity experts want in == out
        if (turn++ % 3 != round % 3) continue;
        const Options options{
            gated, interleaved, transposed,    bit(),         bit(),
            bit(), bit(),       extra ? 1 : 0, extra ? 2 : 0, static_cast<Activation>(random() % num_activations)};
        const Shape shape{31, 3, 37, 70, extra ? 37 : 41, 31 * 6 + 9, 0.7};
        check_ffn<T>(shape, options, bit() ? 63 : static_cast<int>(random() % 64), random);
      }
    }
  }
  const Options plain{true, false, false, true, false, false, true, 0, 0, Activation::silu};
  check_ffn<T>({90, 3, 16, 33, 64, 200, 0.9}, plain, 63, random);  // more rows than a tile has
  check_ffn<T>({5, 2, 8, 8, 8, 0, 0}, plain, 63, random);          // no place for an entry
  check_ffn<T>({5, 2, 8, 8, 8, 7, 0}, plain, 63, random);          // no entry
  check_ffn<T>({0, 2, 8, 8, 8, 0, 0}, plain, 63, random);          // no item
  const Options without_experts{true, false, false, false, false, false, true, 1, 1, Activation::silu};
  check_ffn<T>({6, 0, 8, 5, 8, 12, 1}, without_experts, 63, random);
}

/// Entries past the plan's end belong to no group, not even where there are no identity groups.
void check_entries_that_do_not_exist() {
  Guarded<float> rows(std::vector<float>{1, 2, 3, 4, 5, 6}), x(std::vector<float>{7, 7, 7, 7}), y(4);
  Guarded<int32_t> offsets(std::vector<int32_t>{0, 1}), item_offsets(std::vector<int32_t>{-3, 1, 90});
  Guarded<int32_t> entries(std::vector<int32_t>{0, 2, 5});
  ExpertCombine<float, float> combine{
      rows.data(), nullptr, x.data(), nullptr, offsets.data(), item_offsets.data(), entries.data(), 1, 0,
      1,           2,       3,        2,       y.data()};
  expert_combine_cuda(combine, nullptr);
  expect(y.values() == std::vector<float>({1, 2, 0, 0}), "entries that do not exist add nothing");
}

/// What a GPU cannot report it must survive.
void check_bad_ids(std::mt19937& random) {
  const Shape shape{6, 2, 5, 70, 5, 12, 0.8};
  const Options options{true, false, false, true, true, false, true, 1, 1, Activation::gelu};
  TestPlan plan(shape.items, 4, shape.capacity, shape.density, random);
  const Tensors<float> tensors(shape, 2, random);
  for (int round = 0; round < 6; ++round) {
    std::vector<int32_t> widths = {-4, 1000};
    Guarded<int32_t> offsets(plan.offsets), items(plan.items), item_offsets(plan.item_offsets), entries(plan.entry_ids);
    const auto scramble = [&](Guarded<int32_t>& ids) {
      for (int64_t i = 0; i < ids.size(); ++i) {
        if (random() % 2) ids.data()[i] = static_cast<int32_t>(random() % 60) - 20;
      }
      if (round % 2) ids.data()[random() % ids.size()] = random() % 2 ? INT32_MAX : INT32_MIN;
    };
    scramble(items);
    scramble(entries);
    if (round > 1) scramble(item_offsets);
    if (round > 2) scramble(offsets);
    ExpertFfn<float> ffn = problem(shape, options, plan, tensors, widths);
    ffn.group_offsets = offsets.data();
    ffn.item_ids = items.data();
    ffn.item_offsets = item_offsets.data();
    ffn.entry_ids = entries.data();
    Guarded<int32_t> schedule(row_tiles_scratch(2));
    Guarded<float> hidden(12 * 70), dpre(12 * 140), dots(2 * 12), sums(12 * 5), y(6 * 5);
    Guarded<float> pre_activation(tensors.saved);
    expert_ffn_cuda(ffn, 12, {schedule.data(), hidden.data(), sums.data()}, y.data(), pre_activation.data(), nullptr);
    Gradients<float, Guarded> gradients(shape, 2);
    expert_ffn_backward_cuda(ffn, 12, tensors.dy.data(), pre_activation.data(),
                             {schedule.data(), hidden.data(), dpre.data(), dots.data(), sums.data()},
                             gradients.pointers(shape, options, nullptr, 63), nullptr);
  }
}

}  // namespace

int main() {
  unsigned round = 0;
  for_each_schedule([&] {
    std::mt19937 random(++round);
    check_dtype<float>(round, random);
    check_dtype<double>(round, random);
    check_dtype<bfloat16>(round, random);
    check_dtype<half>(round, random);
    check_entries_that_do_not_exist();
    check_bad_ids(random);
  });
  std::puts("expert_ffn: ok");
}
