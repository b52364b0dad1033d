// What the index takes of memory and of steps, for keys that other skip lists cannot bear; windows that slide; and what
// happens where memory ends.
#include <numeric>

#include "index_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using Index = BSkipList<int64_t>;

void expect_valid(const Index& index) {
  const std::string problem = index.validate();
  expect(problem.empty(), "validate: " + problem);
}

/// Nodes that searches go through, beyond one for each level, per search.
double extra_steps(const Index& index, const std::vector<int64_t>& keys) {
  const index_detail::Tree<compiled_cpu_isa, 1> tree{index.arena()};
  int64_t steps = 0;
  for (const int64_t key : keys) {
    tree.read_leaf({key}, [](const auto&, uint64_t) {}, [&](const auto&, uint32_t) { ++steps; });
  }
  return static_cast<double>(steps) / static_cast<double>(keys.size()) - tree.node(index_root).level();
}

struct Pattern {
  const char* name;
  int64_t (*key)(int64_t i);
  bool shuffled;
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int64_t n = 10000, slides_per_window = 4, sizes = 2;
#else
constexpr int64_t n = 200000, slides_per_window = 20, sizes = 9;
#endif
constexpr Pattern patterns[] = {
    {"random keys", [](int64_t) { return random_word(); }, false},
    {"odd keys", [](int64_t i) { return 2 * i + 1; }, true},
    {"random odd keys", [](int64_t) { return random_word() | 1; }, false},
    {"multiples of 2^4", [](int64_t i) { return i << 4; }, true},
    {"multiples of 2^6", [](int64_t i) { return i << 6; }, true},
    {"multiples of 2^24", [](int64_t i) { return i << 24; }, true},
    {"multiples of 2^46", [](int64_t i) { return (i - n / 2) << 46; }, true},
    {"timestamps", [](int64_t i) { return 1764000000000000000 + i * 1000000 + random_int(1000000); }, false},
    {"timestamps in any order", [](int64_t i) { return 1764000000000000000 + i * 1000000; }, true},
    {"ascending", [](int64_t i) { return i - n / 2; }, false},
    {"descending", [](int64_t i) { return n / 2 - i; }, false},
    {"from both ends", [](int64_t i) { return i % 2 ? i : -i; }, false},
    {"down to the least", [](int64_t i) { return std::numeric_limits<int64_t>::min() + n - 1 - i; }, false},
    {"up to the most", [](int64_t i) { return std::numeric_limits<int64_t>::max() - n + 1 + i; }, false},
};

/// In memory and steps every pattern is as random keys are, or better.
void check_patterns() {
  double random_bytes = 0;
  for (const Pattern& pattern : patterns) {
    context = pattern.name;
    std::vector<int64_t> keys(n);
    for (int64_t i = 0; i < n; ++i) keys[i] = pattern.key(i);
    if (pattern.shuffled) std::shuffle(keys.begin(), keys.end(), random_bits);
    Index index;
    for (int64_t i = 0; i < n; ++i) index.insert_or_assign(keys[i], i);
    expect_valid(index);
    const double bytes = static_cast<double>(index.memory_bytes()) / static_cast<double>(index.size());
    if (random_bytes == 0) random_bytes = bytes;
    expect(bytes <= 26, std::to_string(bytes) + " bytes a key");
    expect(bytes <= 1.2 * random_bytes, std::to_string(bytes / random_bytes) + " of the bytes of random keys");
    expect(!pattern.shuffled || bytes >= 0.8 * random_bytes, "fewer bytes than keys in this order can have");
    expect(extra_steps(index, keys) == 0, "a search goes sideways");
    for (int64_t i = 0; i < n; i += 97) expect(index.find(keys[i]) == static_cast<uint64_t>(i), "find");
    // Half go, in the order they came in: what is left is dense enough, and all of it can be used again.
    for (int64_t i = 0; i < n / 2; ++i) index.erase(keys[i]);
    const int64_t memory = index.memory_bytes();
    for (int64_t i = 0; i < n / 2; ++i) index.insert_or_assign(keys[i], i);
    expect_valid(index);
    expect(static_cast<double>(index.memory_bytes()) <= 1.1 * static_cast<double>(memory),
           "erased memory is used again");
  }
}

/// A window of fixed size slides over keys in order, in any order, and descending: its memory stays what it was.
void check_windows() {
  constexpr int64_t window = 5000, slides = slides_per_window * window;
  std::vector<int64_t> random(slides);
  for (int64_t& key : random) key = random_word();
  for (const int order : {-1, 0, 1}) {
    context = std::string("window, ") + (order < 0 ? "descending" : order > 0 ? "ascending" : "random keys");
    const auto key_at = [&](int64_t i) { return order == 0 ? random[i] : order * 3 * i; };
    Index index;
    int64_t memory = 0;
    for (int64_t i = 0; i < slides; ++i) {
      expect(index.insert(key_at(i), i), "insert");
      if (i >= window) expect(index.erase(key_at(i - window)), "erase");
      if (i == 2 * window) memory = index.memory_bytes();
    }
    expect_valid(index);
    expect(index.size() == window, "size");
    expect(static_cast<double>(index.memory_bytes()) <= 1.25 * static_cast<double>(memory), "memory grows");
  }
}

/// Whether `f` finds memory used up.
template <class F>
bool is_full(F&& f) {
  try {
    f();
    return false;
  } catch (const std::bad_alloc&) {
    return true;
  }
}

/// Small arenas, filled one by one: the insert that finds no memory changes nothing, and keys that are there can still
/// be assigned and erased.
void check_full() {
  for (int64_t max_nodes = 3; max_nodes < 400; max_nodes += 1 + max_nodes / sizes) {
    for (const bool ascending : {false, true}) {
      context = "an arena of " + std::to_string(max_nodes) + " nodes";
      Index index(max_nodes);
      Twin twin(index);
      const auto next = [&] { return ascending ? static_cast<int64_t>(twin.map.size()) : random_int(1 << 30); };
      int64_t key = next();
      while (!is_full([&] { twin.insert(key, key, true); })) key = next();
      expect(index.size() >= (max_nodes - 3) * 30, "most of the memory is used");
      twin.check_all();
      for (const auto& [there, value] : twin.map) {
        expect(!is_full([&] { index.insert_or_assign(there, value + 1); }), "a key that is there can be assigned");
        expect(!is_full([&] { index.insert(there, 0); }), "a key that is there is found by insert");
      }
      for (auto& [there, value] : twin.map) ++value;
      twin.check_all();
      std::vector<int64_t> erased;
      for (int64_t size = index.size(); static_cast<int64_t>(erased.size()) < size / 2;) {
        erased.push_back(twin.map.lower_bound(random_int(twin.map.rbegin()->first + 1))->first);
        twin.erase(erased.back());
      }
      twin.check_all();
      for (size_t i = 0; i < erased.size() / 3; ++i) {
        expect(!is_full([&] { twin.insert(erased[i], 1, true); }), "what was erased makes room");
      }
      twin.check_all();
    }
  }
}

/// Memory ends in the middle of a batch: each key's status is true of it.
void check_full_in_batch() {
  for (const int threads : {1, 3}) {
    for (const int64_t max_nodes : {3, 20, 82, 150}) {
      context = "a batch into " + std::to_string(max_nodes) + " nodes";
      num_threads = threads;
      Index index(max_nodes);
      Twin twin(index);
      int64_t refused = 0;
      for (const bool assign : {false, true, false}) {
        std::vector<int64_t> keys(12000);
        for (int64_t& key : keys) key = random_int(20000);
        refused += twin.insert_batch(keys, assign);
        twin.check_all();
      }
      expect(refused > 0, "memory ended");
      std::vector<int64_t> keys(9000);
      for (int64_t& key : keys) key = random_int(20000);
      twin.erase_batch(keys);
      twin.check_all();
    }
  }
  num_threads = 1;
}

void check_full_bulk_load() {
  context = "bulk_load";
  std::vector<int64_t> keys(10000);
  std::iota(keys.begin(), keys.end(), 0);
  const std::vector<uint64_t> values(keys.begin(), keys.end());
  Index index(100);
  expect(is_full([&] { index.bulk_load(keys, values); }), "more than there is memory for");
  expect(index.empty(), "nothing was loaded");
  expect_valid(index);
  keys.resize(3000);
  index.bulk_load(keys, std::span(values).first(3000));
  expect(index.size() == 3000 && index.find(2999) == 2999, "what there is memory for is loaded");
  expect_valid(index);
}

}  // namespace

int main() {
  parallel_backend().num_threads = [] { return num_threads; };
  check_patterns();
  check_windows();
  check_full();
  check_full_in_batch();
  check_full_bulk_load();
  std::puts("index memory: ok");
}
