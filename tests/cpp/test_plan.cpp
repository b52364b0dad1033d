// Plan builders, the transpose, and what moves rows, on the CPU: against their definitions, and the same bits on
// several threads as on one. Inputs are long enough to be cut into a chunk for every thread.
#include "anabranch/plan/build_cpu.hpp"
#include "anabranch/plan/reduce_cpu.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

using Ids = std::vector<int32_t>;

/// offsets, items, sources of a plan.
struct Built {
  std::vector<Ids> arrays;
  Built(int64_t groups, int64_t capacity) : arrays{Ids(groups + 1), Ids(capacity), Ids(capacity)} {}
  PlanArrays pointers() {
    return {arrays[0].data(), arrays[1].data(), arrays[2].data(), static_cast<int64_t>(arrays[0].size()) - 1,
            static_cast<int64_t>(arrays[1].size())};
  }
};

void expect_same(const std::vector<Ids>& found, const std::vector<Ids>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) expect(found[i] == wanted[i], "array " + std::to_string(i) + " is wrong");
}

std::vector<Ids> transposed(Built& plan, int64_t items, void (*transpose)(const PlanArrays&, const TransposedArrays&)) {
  std::vector<Ids> arrays{Ids(items + 1), Ids(plan.arrays[1].size()), Ids(plan.arrays[1].size())};
  transpose(plan.pointers(), {arrays[0].data(), arrays[1].data(), arrays[2].data(), items});
  return arrays;
}

/// Pairs of which some have no group, in the order of their items or not, and a capacity that may cut the plan short.
Built check_builders(int64_t pairs, int64_t items, int64_t groups, int64_t capacity) {
  context = "plan of " + std::to_string(pairs) + " pairs, capacity " + std::to_string(capacity);
  Ids item_of(pairs), group_of(pairs);
  for (int32_t& item : item_of) item = static_cast<int32_t>(random_bits() % items);
  for (int32_t& group : group_of) group = static_cast<int32_t>(random_bits() % (groups + 1));
  const auto item = [&](int64_t p) -> int64_t { return item_of[p]; };
  const auto group = [&](int64_t p) -> int64_t { return group_of[p]; };
  Built unsorted(groups, capacity), sorted(groups, capacity);
  build_plan_reference(pairs, item, group, unsorted.pointers());
  on_several_threads(
      [&] {
        Built built(groups, capacity);
        build_plan_from_unsorted_cpu(pairs, items, item, group, built.pointers());
        return built.arrays;
      },
      [&](const auto& found) { expect_same(found, unsorted.arrays); });
  std::sort(item_of.begin(), item_of.end());
  build_plan_reference(pairs, item, group, sorted.pointers());
  on_several_threads(
      [&] {
        Built built(groups, capacity);
        build_plan_cpu(pairs, item, group, built.pointers());
        return built.arrays;
      },
      [&](const auto& found) { expect_same(found, sorted.arrays); });
  on_several_threads(
      [&] { return transposed(sorted, items, transpose_plan_cpu); },
      [&](const auto& found) { expect_same(found, transposed(sorted, items, transpose_plan_reference)); });
  return sorted;
}

template <class T>
void check_rows(Built& plan, int64_t items, int64_t width) {
  using Sum = accumulate_t<T>;
  context = std::string("rows, ") + type_name<T>() + ", width " + std::to_string(width);
  const Ids &offsets = plan.arrays[0], &ids = plan.arrays[1];
  const auto by_item = transposed(plan, items, transpose_plan_reference);
  const int64_t groups = static_cast<int64_t>(offsets.size()) - 1, capacity = static_cast<int64_t>(ids.size());
  const int64_t entries = offsets[groups];
  const auto x = random_values<T>(items * width), values = random_values<T>(capacity * width);
  const auto dout = random_values<T>(groups * width);
  const auto weights = random_values<Sum>(capacity);
  const auto wide = [](const auto& narrow) { return converted<double>(narrow); };
  const auto compare = [&](const char* what, int64_t rows, auto kernel, auto reference) {
    std::vector<double> wanted(rows * width);
    reference(wanted.data());
    on_several_threads(
        [&] {
          std::vector<std::vector<T>> results(1, std::vector<T>(rows * width));
          kernel(results[0].data());
          return results;
        },
        [&](const auto& found) { expect_close<T>(found[0], wanted, sizeof(T) == 2 ? 1 : 64, what); });
  };
  const auto wide_x = wide(x), wide_values = wide(values), wide_weights = wide(weights), wide_dout = wide(dout);
  compare(
      "gather", capacity,
      [&](T* out) { gather_cpu(x.data(), weights.data(), ids.data(), entries, capacity, width, out); },
      [&](double* out) {
        gather_reference(wide_x.data(), wide_weights.data(), ids.data(), entries, capacity, width, out);
      });
  compare(
      "combine", items,
      [&](T* out) {
        combine_cpu(values.data(), weights.data(), by_item[0].data(), by_item[2].data(), items, width, out);
      },
      [&](double* out) {
        combine_reference(wide_values.data(), wide_weights.data(), by_item[0].data(), by_item[2].data(), items, width,
                          out);
      });
  std::vector<double> dots(capacity);
  row_dot_reference(wide_values.data(), wide_x.data(), ids.data(), entries, capacity, width, dots.data());
  on_several_threads(
      [&] {
        std::vector<std::vector<Sum>> results(1, std::vector<Sum>(capacity));
        row_dot_cpu(values.data(), x.data(), ids.data(), entries, capacity, width, results[0].data());
        return results;
      },
      [&](const auto& found) { expect_close<Sum>(found[0], dots, 64, "row_dot"); });
  for (const Reduction reduction : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min}) {
    Ids winners(groups * width), wanted_winners(groups * width);
    compare(
        "segment_reduce", groups,
        [&](T* out) {
          segment_reduce_cpu(values.data(), offsets.data(), groups, width, reduction, out, winners.data());
        },
        [&](double* out) {
          segment_reduce_reference(wide_values.data(), offsets.data(), groups, width, reduction, out,
                                   wanted_winners.data());
        });
    expect(winners == wanted_winners, "segment_reduce picks another winner");
    compare(
        "segment_reduce_backward", capacity,
        [&](T* out) {
          segment_reduce_backward_cpu(dout.data(), winners.data(), offsets.data(), groups, capacity, width, reduction,
                                      out);
        },
        [&](double* out) {
          segment_reduce_backward_reference(wide_dout.data(), winners.data(), offsets.data(), groups, capacity, width,
                                            reduction, out);
        });
  }
}

}  // namespace

int main() {
  check_builders(0, 3, 2, 4);
  check_builders(100000, 50, 300, 100000);
  check_builders(100000, 50, 300, 40000);
  Built plan = check_builders(3000, 700, 5, 3100);
  for (const int64_t width : {1, 33, 600}) {
    check_rows<float>(plan, 700, width);
    check_rows<double>(plan, 700, width);
    check_rows<bfloat16>(plan, 700, width);
    check_rows<half>(plan, 700, width);
  }
  std::printf("plan: ok\n");
}
