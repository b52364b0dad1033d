// Rows through a plan: gather, combine, row products, selection and segment reductions against their definitions, for
// every dtype, with aligned and unaligned rows, widths around the vector sizes, and rows past the plan's end.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "anabranch/plan/rows.cuh"
#include "anabranch/plan/segment.cuh"
#include "guarded.hpp"
#include "routed_plan.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

/// Random rows for every entry; rows past the plan's end hold NaN, which no result may show.
template <class T>
std::vector<T> entry_rows(const TestPlan& plan, int64_t width, std::mt19937& random) {
  std::vector<T> rows = random_values<T>(plan.capacity * width, random);
  std::fill(rows.begin() + plan.num_entries() * width, rows.end(), T(NAN));
  return rows;
}

template <class T>
void check_rows(const TestPlan& plan, int64_t width, int shift, bool weighted) {
  using Sum = accumulate_t<T>;
  std::mt19937 random(static_cast<unsigned>(width));
  Guarded<int32_t> offsets(plan.offsets), items(plan.items), item_offsets(plan.item_offsets), entries(plan.entry_ids);
  const int32_t* num_entries = offsets.data() + plan.num_groups;
  Guarded<Sum> weight_values(entry_rows<Sum>(plan, 1, random));
  const Sum* weights = weighted ? weight_values.data() : nullptr;

  Guarded<T> x(random_values<T>(plan.num_items * width, random), shift), gathered(plan.capacity * width, shift);
  std::vector<T> expected(plan.capacity * width);
  gather_reference(x.data(), weights, items.data(), plan.num_entries(), plan.capacity, width, expected.data());
  gather_cuda(x.data(), weights, items.data(), num_entries, plan.num_items, plan.capacity, width, gathered.data(),
              nullptr);
  expect(same_bits(gathered.values(), expected), "gathered rows");

  Guarded<T> values(entry_rows<T>(plan, width, random), shift), combined(plan.num_items * width, shift);
  expected.resize(plan.num_items * width);
  combine_reference(values.data(), weights, item_offsets.data(), entries.data(), plan.num_items, width,
                    expected.data());
  combine_cuda(values.data(), weights, item_offsets.data(), entries.data(), plan.num_items, plan.capacity, width,
               combined.data(), nullptr);
  expect(same_bits(combined.values(), expected), "combined rows: the same sums in the same order");

  Guarded<Sum> products(plan.capacity);
  std::vector<Sum> expected_products(plan.capacity);
  row_dot_reference(values.data(), x.data(), items.data(), plan.num_entries(), plan.capacity, width,
                    expected_products.data());
  row_dot_cuda(values.data(), x.data(), items.data(), num_entries, plan.num_items, plan.capacity, width,
               products.data(), nullptr);
  expect(spacing_error(products.values(), expected_products) < 4.0 + static_cast<double>(width), "products of rows");
}

template <class T>
void check_segments(const TestPlan& plan, int64_t width, int shift, Reduction reduction, bool special) {
  std::mt19937 random(static_cast<unsigned>(width) + 1);
  const bool selects = reduction == Reduction::max || reduction == Reduction::min;
  std::vector<T> rows = entry_rows<T>(plan, width, random);
  if (special) {  // many ties, some NaN
    for (int64_t i = 0; i < plan.num_entries() * width; ++i)
      rows[i] = random() % 19 ? T(static_cast<float>(static_cast<int>(random() % 3) - 1)) : T(NAN);
  }
  Guarded<T> values(rows, shift), out(plan.num_groups * width, shift);
  Guarded<int32_t> offsets(plan.offsets), arg(plan.num_groups * width);
  std::vector<T> expected(plan.num_groups * width);
  std::vector<int32_t> expected_arg(plan.num_groups * width);
  segment_reduce_reference(values.data(), offsets.data(), plan.num_groups, width, reduction, expected.data(),
                           selects ? expected_arg.data() : nullptr);
  segment_reduce_cuda(values.data(), offsets.data(), plan.num_groups, plan.capacity, width, reduction, out.data(),
                      selects ? arg.data() : nullptr, nullptr);
  if (selects) {
    expect(arg.values() == expected_arg, "entries that won");
    expect(spacing_error(out.values(), expected) == 0, "largest or smallest of each group");
  } else {
    expect(spacing_error(out.values(), expected) <= (sizeof(T) < 4 ? 1.0 : 24.0), "sums or means of each group");
  }

  Guarded<T> dout(random_values<T>(plan.num_groups * width, random), shift), dvalues(plan.capacity * width, shift);
  expected.resize(plan.capacity * width);
  segment_reduce_backward_reference(dout.data(), expected_arg.data(), offsets.data(), plan.num_groups, plan.capacity,
                                    width, reduction, expected.data());
  segment_reduce_backward_cuda(dout.data(), selects ? arg.data() : nullptr, offsets.data(), plan.num_groups,
                               plan.capacity, width, reduction, dvalues.data(), nullptr);
  expect(same_bits(dvalues.values(), expected), "gradient of a segment reduction");
}

void check_select(const TestPlan& plan) {
  std::mt19937 random(3);
  const int64_t num_values = plan.num_items * plan.num_groups;
  Guarded<float> values(random_values<float>(num_values, random)), selected(plan.capacity);
  Guarded<int32_t> sources(plan.sources);
  select_cuda(values.data(), sources.data(), num_values, plan.capacity, selected.data(), nullptr);
  Guarded<float> back(std::vector<float>(static_cast<size_t>(num_values), 0.0f));
  select_backward_cuda(selected.data(), sources.data(), num_values, plan.capacity, back.data(), nullptr);
  std::vector<float> expected(static_cast<size_t>(num_values), 0.0f);
  for (int64_t e = 0; e < plan.capacity; ++e) {
    const int32_t source = plan.sources[e];
    expect(selected.data()[e] == (source < 0 ? 0.0f : values.data()[source]), "weights of the entries");
    if (source >= 0) expected[source] = values.data()[source];
  }
  expect(back.values() == expected, "gradient of the weights");
}

template <class T>
void check_dtype() {
  std::mt19937 random(11);
  const TestPlan plan(23, 5, 90, 0.5, random), empty(4, 3, 6, 0, random), nothing(0, 2, 0, 0, random);
  const TestPlan long_groups(200, 3, 400, 0.9, random);
  for (const int64_t width : {1, 3, 8, 40, 67}) {
    for (const int shift : {0, 1}) {
      check_rows<T>(plan, width, shift, true);
      check_rows<T>(plan, width, shift, false);
      for (const auto reduction : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min}) {
        check_segments<T>(plan, width, shift, reduction, width % 2);
      }
    }
  }
  check_rows<T>(plan, 1040, 0, true);  // rows longer than a block's reach
  check_segments<T>(plan, 520, 0, Reduction::max, false);
  check_segments<T>(long_groups, 9, 0, Reduction::mean, false);
  check_segments<T>(long_groups, 16, 0, Reduction::min, true);
  for (const TestPlan* degenerate : {&empty, &nothing}) {
    check_rows<T>(*degenerate, 8, 0, true);
    check_rows<T>(*degenerate, 0, 0, true);
    check_segments<T>(*degenerate, 8, 0, Reduction::mean, false);
    check_segments<T>(*degenerate, 8, 0, Reduction::max, false);
  }
}

/// What a GPU cannot report it must survive: ids and offsets that point outside.
void check_bad_ids() {
  const std::vector<float> x = {1, 2, 3, 4};  // two items of width 2
  Guarded<float> rows(x), gathered(6), combined(4);
  Guarded<int32_t> items(std::vector<int32_t>{1, -7, 2}), num_entries(std::vector<int32_t>{100});
  gather_cuda<float>(rows.data(), nullptr, items.data(), num_entries.data(), 2, 3, 2, gathered.data(), nullptr);
  expect(gathered.values() == std::vector<float>({3, 4, 0, 0, 0, 0}), "rows of items that do not exist are zero");
  Guarded<int32_t> offsets(std::vector<int32_t>{-5, 1, 50}), entries(std::vector<int32_t>{1, 9});
  combine_cuda<float>(rows.data(), nullptr, offsets.data(), entries.data(), 2, 2, 2, combined.data(), nullptr);
  expect(combined.values() == std::vector<float>({3, 4, 0, 0}), "entries that do not exist add nothing");
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<double>();
    check_dtype<bfloat16>();
    check_dtype<half>();
    std::mt19937 random(5);
    check_select(TestPlan(300, 4, 700, 0.4, random));
    check_bad_ids();
  });
  std::puts("rows: ok");
}
