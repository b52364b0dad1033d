// The index against std::map: every type of key and order, every instruction set, one by one and in batches.
#include "index_case.hpp"
#include "index_table.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using Pair = std::pair<int64_t, int64_t>;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int scale = 1;
#else
constexpr int scale = 4;
#endif

template <class Key>
std::vector<Key> tried_keys(int64_t n) {
  std::vector<Key> keys(n);
  for (Key& key : keys) key = tried_key<Key>();
  return keys;
}

template <class Index, class Compare = std::less<typename Index::key_type>>
void check_against_map(const std::string& name, int threads = 3) {
  using Key = typename Index::key_type;
  context = name;
  Index index;
  Twin<Index, Compare> twin(index);
  twin.check_all();
  for (int phase = 0; phase < 4; ++phase) {
    const int64_t inserts = phase % 2 ? 25 : 60;  // of a hundred; the index grows, shrinks, grows and shrinks
    for (int step = 0; step < 1500 * scale; ++step) {
      const int64_t kind = random_int(100);
      const Key key = tried_key<Key>();
      if (kind < inserts) {
        twin.insert(key, static_cast<uint64_t>(random_word()), kind % 2);
      } else if (kind < 80) {
        twin.erase(key);
      } else if (kind < 98) {
        twin.look(key);
      } else {
        twin.look_at_range(key, tried_key<Key>(), kind % 2);
      }
    }
    twin.check_all();
    // Batches of one, of several groups, and of a size that is worth three threads; many keys twice and more.
    num_threads = threads;
    for (const int64_t n : {0, 1, 60, 3 * 2048 + 7}) {
      expect(twin.insert_batch(tried_keys<Key>(n), phase % 2) == 0, "nothing is refused");
      twin.look_batch(tried_keys<Key>(n));
      twin.check_all();
      twin.erase_batch(tried_keys<Key>(phase % 2 ? n : n / 2));
      twin.check_all();
    }
    num_threads = 1;
  }
  if constexpr (requires(Key key) { index.last_until(key); }) {
    std::vector<Key> first = tried_keys<Key>(300), last = tried_keys<Key>(300);
    const std::vector<int64_t> counts = index.range_counts(first, last);
    for (size_t i = 0; i < first.size(); ++i) {
      auto at = twin.map.upper_bound(last[i]);
      const int64_t count = first[i] > last[i] ? 0 : std::distance(twin.map.lower_bound(first[i]), at);
      expect(counts[i] == count, "range_count of a batch");
      expect(index.last_until(last[i]) == (at == twin.map.begin() ? std::nullopt : twin.entry(twin.map, --at)),
             "last_until");
    }
  }
  // The same keys, loaded in bulk: readable, and writable from there.
  std::vector<Key> keys;
  std::vector<uint64_t> values;
  for (const auto& [key, value] : twin.map) {
    keys.push_back(key);
    values.push_back(value);
  }
  Index loaded;
  Twin<Index, Compare> loaded_twin(loaded);
  loaded.bulk_load(keys, values);
  loaded_twin.map = twin.map;
  loaded_twin.check_all();
  loaded_twin.insert_batch(tried_keys<Key>(2000), true);
  loaded_twin.erase_batch(tried_keys<Key>(2000));
  loaded_twin.check_all();
}

/// Equal keys that fill the whole share of a thread: the first is inserted, the last is assigned.
void check_equal_keys() {
  context = "equal keys in a batch";
  for (const int threads : {1, 2, 3, 5, 8}) {
    num_threads = threads;
    BSkipList<int64_t> index;
    Twin twin(index);
    for (const int64_t distinct : {1, 2, 5}) {
      std::vector<int64_t> keys(8 * 2048);
      for (int64_t& key : keys) key = random_int(distinct);
      for (const bool assign : {false, true, false}) expect(twin.insert_batch(keys, assign) == 0, "none is refused");
      twin.erase_batch(keys);
    }
    twin.check_all();
  }
  num_threads = 1;
}

template <class F>
void expect_refused(F&& f, const std::string& message) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return expect(std::string(error.what()).find(message) != std::string::npos, std::string("says ") + error.what());
  }
  expect(false, "is not refused: " + message);
}

void check_bad_input() {
  context = "bad input";
  const double nan = std::numeric_limits<double>::quiet_NaN();
  BSkipList<double> numbers;
  numbers.insert(1, 1);
  expect_refused([&] { numbers.insert(nan, 1); }, "key is NaN");
  expect_refused([&] { numbers.find(nan); }, "key is NaN");
  std::vector<double> keys{3, nan};
  std::vector<uint64_t> values{3, 4};
  std::vector<IndexStatus> status(2);
  expect_refused([&] { numbers.insert(keys, values, status); }, "key is NaN");
  expect(numbers.size() == 1 && !numbers.contains(3), "a batch with a NaN changes nothing");
  status.pop_back();
  expect_refused([&] { numbers.erase(keys, status); }, "erase: spans have");
  BSkipList<int64_t> index;
  expect_refused([&] { index.bulk_load(std::vector<int64_t>{1, 3, 3}, std::vector<uint64_t>{1, 2, 3}); }, "keys[2]");
  expect_refused([&] { index.bulk_load(std::vector<int64_t>{1}, std::vector<uint64_t>{}); }, "must have 1");
  expect(index.empty() && index.validate().empty(), "what was refused changed nothing");
  index.insert(1, 1);
  expect_refused([&] { index.bulk_load(std::vector<int64_t>{2}, std::vector<uint64_t>{2}); }, "must be empty");
  expect_refused([] { BSkipList<int64_t> none(2); }, "max_nodes is 2");
}

}  // namespace

int main() {
  parallel_backend().num_threads = [] { return num_threads; };
  check_against_map<BSkipList<int64_t>>("int64");
  check_against_map<BSkipList<Pair>>("pair");
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // The same words by other maps: sanitizers see nothing new in them, and each takes ten seconds to compile for one.
  check_against_map<BSkipList<int64_t, std::greater<>>, std::greater<int64_t>>("int64, descending");
  check_against_map<BSkipList<uint64_t>>("uint64");
  check_against_map<BSkipList<double>>("double");
  check_against_map<BSkipList<Pair, std::greater<Pair>>, std::greater<Pair>>("pair, descending");
#endif
#if defined(__SANITIZE_THREAD__)
  constexpr int table_threads = 1;  // the functions may come from a library that the sanitizer does not watch
#else
  constexpr int table_threads = 3;
#endif
  on_every_cpu_isa([] {
    check_against_map<TableIndex<int64_t>>("table, int64", table_threads);
    check_against_map<TableIndex<Pair>>("table, pair", table_threads);
  });
  check_equal_keys();
  check_bad_input();
  std::puts("index: ok");
}
