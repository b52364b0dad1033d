// Sets of two rows of a graph and their sums on the harness against their definitions, products of rows up to rounding
// and all else to the bit: every mode, hubs and empty rows, equal ends, ids and nodes out of range, samples of any
// size.
#include "anabranch/temporal/row_set_sum.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

constexpr RowSetMode modes[] = {RowSetMode::intersection, RowSetMode::left_difference, RowSetMode::right_difference};

struct Graph {
  std::vector<int64_t> offsets{0}, ids;

  /// Degrees are skewed: node 0 knows nearly all, the last nobody.
  Graph(int64_t nodes, std::mt19937& random, bool damaged) {
    for (int64_t node = 0; node < nodes; ++node) {
      const int64_t one_in = 1 + node * 8 / nodes * (node > 0);
      for (int64_t id = damaged ? -2 : 0; id < nodes + 2 * damaged && node + 1 < nodes; ++id) {
        if (static_cast<int64_t>(random() % 8) >= one_in - 1 && random() % one_in == 0) ids.push_back(id);
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    if (damaged) offsets.back() += 5;
  }
};

std::vector<int64_t> some_nodes(int64_t count, int64_t nodes, std::mt19937& random, bool damaged) {
  std::vector<int64_t> out(count);
  for (int64_t& node : out) {
    node = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % (nodes + 2 * damaged)) - damaged;
  }
  return out;
}

template <class T>
void check_sums(const RowPairs& problem, int64_t width, std::mt19937& random, int64_t capacity = -1) {
  Guarded<T> x(random_values<T>(problem.nodes * width, random)), dout(random_values<T>(problem.pairs * width, random));
  Guarded<T> out(dout.size()), dx(x.size());
  std::vector<T> expected_out(dout.size()), expected_dx(x.size());
  const int64_t sampled = std::max<int64_t>(capacity, 0), seed = 5;
  Guarded<T> values(random_values<T>(problem.pairs * sampled, random)), dvalues(values.size());
  Guarded<int64_t> sample(values.size()), sizes(problem.pairs);
  const RowSetWeights<T> weights{capacity >= 0, values.data(), sampled, seed};
  const RowSetScratch scratch{sample.data(), sizes.data()};
  row_set_sum_reference(problem, weights, x.data(), width, expected_out.data());
  row_set_sum_backward_reference(problem, weights, dout.data(), width, expected_dx.data());
  row_set_sum_cuda<T>(problem, weights, x.data(), width, out.data(), nullptr);
  row_set_sum_backward_cuda<T>(problem, weights, dout.data(), width, dx.data(), scratch, nullptr);
  expect(same_bits(out.values(), expected_out), "sums");
  expect(same_bits(dx.values(), expected_dx), "dx");
  std::vector<T> expected_dvalues(values.size());
  row_set_dot_reference(problem, dout.data(), x.data(), width, sampled, seed, expected_dvalues.data());
  row_set_dot_cuda<T>(problem, dout.data(), x.data(), width, sampled, seed, dvalues.data(), scratch, nullptr);
  expect(spacing_error(dvalues.values(), expected_dvalues) <= 16, "dweights");
}

void check_sets(const RowPairs& problem, int64_t capacity, int64_t seed) {
  Guarded<int64_t> ids(problem.pairs * capacity), sizes(problem.pairs);
  std::vector<int64_t> expected_ids(ids.size()), expected_sizes(sizes.size());
  row_set_reference(problem, capacity, seed, expected_ids.data(), expected_sizes.data());
  row_set_cuda(problem, capacity, seed, ids.data(), sizes.data(), nullptr);
  expect(ids.values() == expected_ids, "ids");
  expect(sizes.values() == expected_sizes, "sizes");
}

void check_graph(int64_t nodes, int64_t pairs, bool damaged) {
  std::mt19937 random(static_cast<unsigned>(nodes));
  const Graph graph(nodes, random, damaged);
  Guarded<int64_t> offsets(graph.offsets), ids(graph.ids);
  Guarded<int64_t> left(some_nodes(pairs, nodes, random, damaged)), right(some_nodes(pairs, nodes, random, damaged));
  for (const RowSetMode mode : modes) {
    for (const bool exclude : {false, true}) {
      const RowPairs problem{offsets.data(), ids.data(), left.data(), right.data(), nodes,
                             ids.size(),     pairs,      mode,        exclude};
      check_sums<float>(problem, exclude ? 3 : 40, random);
      if (exclude) check_sums<bfloat16>(problem, 5, random);
      check_sums<float>(problem, 7, random, exclude ? 3 : nodes);
      for (const int64_t capacity : {int64_t{0}, int64_t{1}, int64_t{8}, nodes})
        check_sets(problem, capacity, mode == modes[1]);
    }
  }
}

/// Rows wider than a walk's columns, in the other dtypes.
void check_wide() {
  std::mt19937 random(3);
  const Graph graph(20, random, false);
  Guarded<int64_t> offsets(graph.offsets), ids(graph.ids), left({0, 3, 5, 5}), right({7, 0, 5, 19});
  const RowPairs problem{offsets.data(),           ids.data(), left.data(), right.data(), 20, ids.size(), 4,
                         RowSetMode::intersection, false};
  check_sums<double>(problem, 131, random);
  check_sums<half>(problem, 260, random);
  check_sums<float>(problem, 0, random);
  check_sums<half>(problem, 260, random, 4);
  check_sums<bfloat16>(problem, 131, random, 0);
  check_sums<double>(problem, 0, random, 2);
}

/// Rows that name ids more than once are no sets: which of their elements a sample has is left open, not that it ends
/// and that it has some of them.
void check_repeats() {
  using Ids = std::vector<int64_t>;
  Guarded<int64_t> offsets(Ids{0, 40, 41}), ids(Ids(41, 1)), left(Ids{0}), right(Ids{1});
  ids.data()[0] = 0;
  const RowPairs problem{offsets.data(),           ids.data(), left.data(), right.data(), 2, ids.size(), 1,
                         RowSetMode::intersection, false};
  for (const int64_t capacity : {1, 2, 30}) {
    Guarded<int64_t> sample(capacity), sizes(1);
    row_set_cuda(problem, capacity, 7, sample.data(), sizes.data(), nullptr);
    for (const int64_t id : sample.values()) expect(id == 0 || id == 1 || id == -1, "a repeated id");
    Guarded<float> x(std::vector<float>{1, 2}), weights(std::vector<float>(capacity, 1.0f)), out(1);
    row_set_sum_cuda<float>(problem, {true, weights.data(), capacity, 7}, x.data(), 1, out.data(), nullptr);
    expect(out.values()[0] <= 2.0f * static_cast<float>(capacity), "a sum of repeated ids");
  }
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_graph(9, 6, false);
    check_graph(45, 5, true);
    check_graph(1, 2, false);
    check_graph(5, 0, false);
    check_repeats();
  });
  check_graph(300, 6, false);
  check_wide();
  std::puts("row_intersect: ok");
}
