// Pivots, the hints by which a batch fetches a part of a node: writers keep them right, and wrong ones change no
// answer.
#include <algorithm>
#include <limits>
#include <memory>
#include <random>

#include "index_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using namespace anabranch::index_detail;
using Index = BSkipList<int64_t>;
using Node = index_detail::Node<compiled_cpu_isa, 1>;
using Layout = IndexNode<1>;
constexpr int64_t least = std::numeric_limits<int64_t>::min(), greatest = std::numeric_limits<int64_t>::max();

/// f(node) for every node that the root leads to.
template <class F>
void for_each_node(const Index& index, const Node& node, F&& f) {
  f(node);
  for (int i = 0; node.level() > 0 && i < node.count(); ++i)
    for_each_node(index, Node(index.arena(), node.child(i)), f);
}

void expect_right_pivots(const Index& index) {
  for_each_node(index, Node(index.arena(), index_root), [](const Node& node) {
    const bool leaf = node.level() == 0;
    for (int j = 0; j < Layout::num_pivots; ++j) {
      const int at = (j + 1) * Layout::part(leaf);
      const int64_t wanted = at < node.count() ? node.key(leaf, at)[0] : greatest;
      expect(node.words[Layout::pivots + j] == wanted, "a pivot is the key of its place");
    }
  });
}

/// Batches answer as single searches do.
void expect_same_answers(const Index& index, const std::vector<int64_t>& keys) {
  const auto n = keys.size();
  std::vector<uint64_t> values(n);
  std::vector<int64_t> found_keys(n);
  const std::unique_ptr<bool[]> found(new bool[n]);
  index.find(keys, values, {found.get(), n});
  for (size_t i = 0; i < n; ++i) {
    const auto single = index.find(keys[i]);
    expect(found[i] == single.has_value() && (!single || values[i] == *single), "find");
  }
  index.lower_bound(keys, found_keys, values, {found.get(), n});
  for (size_t i = 0; i < n; ++i) {
    const auto single = index.lower_bound(keys[i]);
    expect(found[i] == single.has_value() && (!single || found_keys[i] == single->first), "lower_bound");
  }
}

void scramble(const Index& index, std::mt19937_64& random) {
  for_each_node(index, Node(index.arena(), index_root), [&](const Node& node) {
    for (int j = 0; j < Layout::num_pivots; ++j) {
      const int64_t choices[] = {least, greatest, 0, static_cast<int64_t>(random() % 40000)};
      node.words[Layout::pivots + j] = choices[random() % 4];
    }
  });
}

}  // namespace

int main() {
  std::mt19937_64 random(3);
  const auto some = [&](int64_t n, int64_t range) {
    std::vector<int64_t> keys(n);
    for (auto& key : keys) key = static_cast<int64_t>(random() % range);
    return keys;
  };
  for (const bool loaded : {false, true}) {
    context = loaded ? "after bulk_load" : "grown";
    Index index;
    if (loaded) {
      std::vector<int64_t> keys(9000);
      for (int64_t i = 0; i < 9000; ++i) keys[i] = 4 * i;
      index.bulk_load(keys, std::vector<uint64_t>(keys.size(), 5));
      expect_right_pivots(index);
    }
    for (int round = 0; round < 6; ++round) {
      for (const int64_t key : some(2000, 40000)) index.insert_or_assign(key, key + 1);
      const auto batch = some(3000, 40000), gone = some(round < 3 ? 1000 : 9000, 40000);
      std::vector<IndexStatus> status(batch.size()), erased(gone.size());
      index.insert(batch, std::vector<uint64_t>(batch.size(), round), status, false);
      index.erase(gone, erased);
      for (const int64_t key : some(500, 40000)) index.erase(key);
      expect_right_pivots(index);
    }
    index.insert(greatest, 1);
    index.insert(least, 2);
    auto keys = some(4000, 41000);
    keys.insert(keys.end(), {least, greatest, -1});
    expect_same_answers(index, keys);
    for (int round = 0; round < 4; ++round) {
      scramble(index, random);
      expect_same_answers(index, keys);
      expect(index.validate().empty(), "hints do not make an index invalid");
    }
  }
  std::puts("index pivots: ok");
}
