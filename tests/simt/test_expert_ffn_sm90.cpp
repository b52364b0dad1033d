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

template <class T, class Shape>
void check_forward(const ExpertFfnShape& shape, GatherKind gather) {
  std::mt19937 random(17);
  ExpertFfnCase<T> given(shape, random);
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
  for (T* pre_activation : {pre.data(), static_cast<T*>(nullptr)}) {
    detail::expert_ffn_sm90_forward<T, Shape>(ffn, capacity, gather, y.data(), pre_activation,
                                              {schedule.data(), hidden.data(), rows.data(), copied.data()}, 3, nullptr);
    expect(largest_error(floats(y.data(), y.size()).data(), floats(expected_y.data(), y.size()).data(), y.size()) <
               kTolerance<T>,
           "y");
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
}

template <class T, class Shape>
void check_forward_shapes(GatherKind gather) {
  // Several row tiles and a ragged last one, an empty expert, one row; column tiles that end inside; K beyond 64.
  check_forward<T, Shape>({.num_items = 150,
                           .in_features = 200,
                           .intermediate = 136,
                           .out_features = 200,
                           .rows = {140, 0, 1, 30, 20, 40},
                           .num_zero = 1,
                           .num_identity = 1,
                           .spare = 9,
                           .biased = true},
                          gather);
  check_forward<T, Shape>({.num_items = 40,
                           .in_features = 64,
                           .intermediate = 264,
                           .out_features = 320,
                           .rows = {7, 33, 40},
                           .interleaved = true,
                           .narrow = true,
                           .weighted = false},
                          gather);
  check_forward<T, Shape>(
      {.num_items = 4, .in_features = 8, .intermediate = 8, .out_features = 8, .rows = {0, 0}, .spare = 3}, gather);
}

}  // namespace

int main() {
  check_forward_shapes<bfloat16, detail::Sm90Tall>(GatherKind::copy);
  check_forward_shapes<half, detail::Sm90Flat>(GatherKind::in_kernel);
  for_each_schedule([] {
    check_forward_shapes<bfloat16, detail::Sm90Flat>(GatherKind::copy);
    check_forward_shapes<bfloat16, detail::Sm90Tall>(GatherKind::in_kernel);
  });
  std::puts("expert_ffn_sm90: ok");
}
