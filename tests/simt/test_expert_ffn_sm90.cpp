// The Hopper kernels of the expert FFN, main loop included, against the plain loops: ragged groups, empty ones,
// capacity beyond the entries, every tile shape and either gather.
#include "anabranch/experts/expert_ffn_sm90.cuh"
#include "expert_ffn_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

/// A few roundings of a number near 1 to T.
template <class T>
constexpr double kTolerance = std::is_same_v<T, bfloat16> ? 0.03 : 0.004;

template <class T>
std::vector<float> floats(const T* values, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(values[i]);
  return out;
}

template <class T>
using Results = std::vector<std::vector<T>>;

/// Returns y.
template <class T, class Shape>
std::vector<T> check_forward(const ExpertFfnShape& shape, GatherKind gather) {
  std::mt19937 random(17);
  ExpertFfnCase<T> given(shape, random);
  given.poison_beyond_widths(true, false);
  const ExpertFfn<T> ffn = given.problem();
  const int64_t columns = 2 * shape.intermediate, capacity = given.capacity;
  const std::vector<T> untouched(static_cast<size_t>(capacity * columns), T(-77.0f));
  Guarded<T> y(shape.num_items * shape.out_features), pre(untouched), expected_pre(untouched);
  Guarded<T> expected_y(y.size());
  // NaN in what a kernel leaves unwritten shows wherever a later one uses it.
  Guarded<T> hidden(std::vector<T>(static_cast<size_t>(capacity * shape.intermediate), T(NAN)));
  Guarded<T> rows(std::vector<T>(static_cast<size_t>(capacity * shape.out_features), T(NAN)));
  Guarded<T> copied(capacity * shape.in_features);
  Guarded<int32_t> schedule(row_tiles_scratch(given.num_experts));
  expert_ffn_reference(ffn, expected_y.data(), expected_pre.data());
  std::vector<T> first;
  for (T* pre_activation : {pre.data(), static_cast<T*>(nullptr)}) {
    detail::expert_ffn_sm90_forward<T, Shape>(ffn, capacity, gather, y.data(), pre_activation,
                                              {schedule.data(), hidden.data(), rows.data(), copied.data()}, 3, nullptr);
    expect(largest_error(floats(y.data(), y.size()).data(), floats(expected_y.data(), y.size()).data(), y.size()) <
               kTolerance<T>,
           "y");
    if (first.empty()) first = y.values();
    expect(same_bits(y.values(), first), "the same bits in training and in inference");
  }
  for (int64_t e = 0; e < capacity; ++e) {
    int64_t group = 0;
    while (group < given.num_experts && given.group_offsets.data()[group + 1] <= e) ++group;
    const int64_t width = e < given.routed() ? ffn.width(group) : 0;
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t feature = c % shape.intermediate;
      const float value = static_cast<float>(pre.data()[e * columns + c]);
      if (feature < width) {
        const float right = static_cast<float>(expected_pre.data()[e * columns + c]);
        expect(std::abs(value - right) <= kTolerance<T> * std::max(1.0f, std::abs(right)), "pre_activation");
      } else if (feature >= (width + 7) / 8 * 8) {
        expect(value == -77.0f, "pre_activation where there is none");
      }
    }
  }
  return first;
}

template <class T, class Shape>
Results<T> check_forward_shapes(GatherKind gather) {
  Results<T> results;
  // Several row tiles and a ragged last one, an empty expert, one row; column tiles that end inside; K beyond 64.
  results.push_back(check_forward<T, Shape>({.num_items = 150,
                                             .in_features = 200,
                                             .intermediate = 136,
                                             .out_features = 200,
                                             .rows = {140, 0, 1, 30, 20, 40},
                                             .num_zero = 1,
                                             .num_identity = 1,
                                             .spare = 9,
                                             .biased = true},
                                            gather));
  results.push_back(check_forward<T, Shape>({.num_items = 40,
                                             .in_features = 64,
                                             .intermediate = 264,
                                             .out_features = 320,
                                             .rows = {7, 33, 40},
                                             .interleaved = true,
                                             .narrow = true,
                                             .weighted = false},
                                            gather));
  results.push_back(check_forward<T, Shape>(
      {.num_items = 4, .in_features = 8, .intermediate = 8, .out_features = 8, .rows = {0, 0}, .spare = 3}, gather));
  return results;
}

/// What a GPU cannot report it must survive: ids, offsets and widths that point outside.
void check_bad_ids() {
  std::mt19937 random(31);
  for (int round = 0; round < 8; ++round) {
    ExpertFfnCase<half> given({.num_items = 20,
                               .in_features = 16,
                               .intermediate = 24,
                               .out_features = 16,
                               .rows = {12, 9, 5},
                               .num_identity = 1,
                               .spare = 4,
                               .narrow = true},
                              random);
    const auto scramble = [&](Guarded<int32_t>& ids) {
      for (int64_t i = 0; i < ids.size(); ++i)
        if (random() % 2) ids.data()[i] = static_cast<int32_t>(random() % 90) - 30;
      if (round % 2) ids.data()[random() % ids.size()] = random() % 2 ? INT32_MAX : INT32_MIN;
    };
    scramble(given.item_ids);
    scramble(given.entry_ids);
    scramble(given.widths);
    if (round > 1) scramble(given.item_offsets);
    if (round > 2) scramble(given.group_offsets);
    Guarded<half> y(20 * 16), pre(given.capacity * 48), hidden(given.capacity * 24), rows(given.capacity * 16);
    Guarded<half> copied(given.capacity * 16);
    Guarded<int32_t> schedule(row_tiles_scratch(given.num_experts));
    for (const auto gather : {GatherKind::in_kernel, GatherKind::copy}) {
      detail::expert_ffn_sm90_forward<half, detail::Sm90Flat>(
          given.problem(), given.capacity, gather, y.data(), pre.data(),
          {schedule.data(), hidden.data(), rows.data(), copied.data()}, 2, nullptr);
    }
  }
}

/// The function that ops call, on either side of its choice of a shape, and what it does not take.
void check_choice() {
  std::mt19937 random(5);
  for (const int64_t rows : {5, 70}) {
    ExpertFfnCase<bfloat16> given(
        {.num_items = 80, .in_features = 24, .intermediate = 16, .out_features = 8, .rows = {rows, rows}}, random);
    const ExpertFfn<bfloat16> ffn = given.problem();
    expect(choose_expert_ffn_sm90(given.capacity, 2).tile_rows == (rows == 5 ? 64 : 128), "the choice of a shape");
    expect(expert_ffn_sm90_takes(ffn, given.capacity), "a problem that the kernels take");
    Guarded<bfloat16> y(80 * 8), expected(80 * 8), hidden(given.capacity * 16), out_rows(given.capacity * 8);
    Guarded<int32_t> schedule(row_tiles_scratch(2));
    expert_ffn_reference(ffn, expected.data(), static_cast<bfloat16*>(nullptr));
    expert_ffn_sm90<bfloat16>(ffn, given.capacity, {schedule.data(), hidden.data(), out_rows.data(), nullptr}, y.data(),
                              nullptr, 2, nullptr);
    expect(largest_error(floats(y.data(), y.size()).data(), floats(expected.data(), y.size()).data(), y.size()) <
               kTolerance<bfloat16>,
           "y of the function that ops call");

    const auto refuses = [&](auto&& change) {
      ExpertFfn<bfloat16> changed = ffn;
      change(changed);
      return !expert_ffn_sm90_takes(changed, given.capacity);
    };
    expect(refuses([](auto& f) { f.gated = false; }) && refuses([](auto& f) { f.activation = Activation::gelu; }) &&
               refuses([](auto& f) { f.in_features = 20; }) && refuses([](auto& f) { f.x += 1; }) &&
               refuses([](auto& f) { std::swap(f.down.in_stride, f.down.out_stride); }) &&
               refuses([](auto& f) { f.gate_up.expert_stride += 4; }) && refuses([](auto& f) { f.num_experts = 0; }) &&
               !expert_ffn_sm90_takes(ffn, 0) && !expert_ffn_sm90_takes(ExpertFfn<float>{}, 8),
           "a problem that the kernels do not take");
  }
}

}  // namespace

int main() {
  check_choice();
  check_bad_ids();
  check_forward_shapes<bfloat16, detail::Sm90Tall>(GatherKind::copy);
  check_forward_shapes<half, detail::Sm90Flat>(GatherKind::in_kernel);
  Results<bfloat16> first;
  for_each_schedule([&] {
    const Results<bfloat16> gathered = check_forward_shapes<bfloat16, detail::Sm90Tall>(GatherKind::in_kernel);
    const Results<bfloat16> copied = check_forward_shapes<bfloat16, detail::Sm90Flat>(GatherKind::copy);
    if (first.empty()) first = gathered;
    for (size_t i = 0; i < first.size(); ++i)
      expect(same_bits(gathered[i], first[i]) && same_bits(copied[i], first[i]),
             "the same bits in any order and shape");
  });
  std::puts("expert_ffn_sm90: ok");
}
