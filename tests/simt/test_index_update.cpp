// The index's inserts and erases on the harness, against std::map, the validator and the CPU on the same memory.
#include "index_update_case.hpp"

namespace {

template <int key_words>
void check_insert(std::mt19937_64& random) {
  Index<key_words> index(900);
  Model model;
  int turn = 0;
  for (const int64_t n : {1, 0, 58, 3, 700, 31, 1500}) {
    Words numbers = random_numbers(n, 4000 + n, random);
    if (n > 30) numbers[5] = kGreatest, numbers[17] = kLeast, numbers[29] = numbers[11];
    if (n == 700) std::fill(numbers.begin(), numbers.begin() + 400, numbers[0]);
    expect(insert(index, model, numbers, ++turn % 2, random) == 0, "refused though there is memory");
    check_contents(index, model);
  }
}

/// More keys than one tile of a prefix sum holds.
template <int key_words>
void check_large(std::mt19937_64& random) {
  Index<key_words> index(300);
  Model model;
  expect(insert(index, model, random_numbers(5000, 6000, random), false, random) == 0,
         "refused though there is memory");
  check_contents(index, model);
  erase(index, model, random_numbers(4500, 6000, random));
  check_contents(index, model);
}

/// Batches of all sizes from the device and from the CPU, on one index, until little is left.
template <int key_words>
void check_mixed(int rounds, std::mt19937_64& random) {
  Index<key_words> index(300);
  Model model;
  for (int round = 0; round < rounds; ++round) {
    simt::current_schedule() = {static_cast<simt::Order>(round % 4), random()};
    const bool grows = round % 40 < 20;
    const auto n = static_cast<int64_t>(random() % (random() % 4 ? 60 : 900));
    const Words numbers = random_numbers(n, 2500, random);
    const uint64_t kind = random() % 8;
    if (kind < (grows ? 6 : 2)) {
      expect(insert(index, model, numbers, random() % 2, random) == 0, "refused though there is memory");
    } else {
      erase(index, model, numbers);
    }
    check_contents(index, model);
  }
  Words all;
  for (int64_t number = -2500; number < 2500; ++number) all.push_back(number);
  erase(index, model, all);
  check_contents(index, model);
  expect(model.empty() && index.nodes_in_use() < 6, "what is empty is given back");
  simt::current_schedule() = {};
}

/// Little memory: some keys are refused, the index is in order all the same, and works on once there is room again.
template <int key_words>
void check_full(int64_t capacity, std::mt19937_64& random) {
  Index<key_words> index(capacity);
  Model model;
  constexpr int per_leaf = IndexNode<key_words>::leaf_capacity;
  const int64_t room = capacity * per_leaf;
  int64_t refused = insert(index, model, random_numbers(2 * room, 100 * room, random), false, random);
  expect(refused > 0, "more keys than there is room for");
  // A node in 16 is held back for the levels above, and leaves are 9 tenths full.
  expect(static_cast<int64_t>(model.size()) >= std::max<int64_t>(per_leaf, (capacity - 4) * 8 / 10 * per_leaf),
         "as many keys as there is room for");
  check_contents(index, model);
  for (int batch = 0; batch < 6; ++batch) {
    insert(index, model, random_numbers(20, 100 * room, random), true, random);
    check_contents(index, model);
  }
  Words some;
  for (const auto& [key, value] : model) some.push_back(number_of<key_words>(key));
  std::shuffle(some.begin(), some.end(), random);
  some.resize(some.size() * 9 / 10);
  erase(index, model, some);
  check_contents(index, model);
  expect(insert(index, model, random_numbers(room / 4, 100 * room, random), false, random) == 0,
         "memory that was given back is used");
  check_contents(index, model);
}

/// Keys that make other skip lists degenerate cost no more nodes than random ones.
template <int key_words>
void check_shapes(std::mt19937_64& random) {
  constexpr int64_t n = 1500;
  constexpr int per_leaf = IndexNode<key_words>::leaf_capacity;
  for (const int64_t step : {int64_t{2}, int64_t{64}, int64_t{1} << 24, int64_t{1} << 50}) {
    Index<key_words> index(200);
    Model model;
    Words numbers;
    for (int64_t i = 0; i < n; ++i) numbers.push_back(step == 2 ? 2 * i + 1 : (i - n / 2) * step);
    std::shuffle(numbers.begin(), numbers.end(), random);
    for (int64_t begin = 0; begin < n; begin += 300) {
      expect(insert(index, model, {numbers.begin() + begin, numbers.begin() + begin + 300}, false, random) == 0,
             "refused though there is memory");
    }
    check_contents(index, model);
    expect(index.nodes_in_use() <= n / (per_leaf * 6 / 10) + 4, "leaves are 6 tenths full");
  }
}

/// Keys that come in order, a few at a time, leave full leaves behind.
template <int key_words>
void check_ascending(std::mt19937_64& random) {
  constexpr int64_t batch = 15, batches = 50;
  Index<key_words> index(100);
  Model model;
  for (int64_t round = 0; round < batches; ++round) {
    Words numbers;
    for (int64_t i = 0; i < batch; ++i) numbers.push_back(round * batch + i);
    expect(insert(index, model, numbers, false, random) == 0, "refused though there is memory");
  }
  check_contents(index, model);
  expect(index.nodes_in_use() <= batch * batches / IndexNode<key_words>::leaf_capacity + 3, "full leaves");
}

/// Leaves that no parent names, because it had no memory to split: they are found, merged and never lost.
template <int key_words>
void check_unnamed(std::mt19937_64& random) {
  constexpr int per_leaf = IndexNode<key_words>::leaf_capacity, children = IndexNode<key_words>::inner_capacity;
  Index<key_words> index(children + 4);
  Model model;
  Words numbers;
  for (int64_t begin = 0; begin < (children + 10) * per_leaf; begin += 100) {
    numbers.clear();
    for (int64_t i = 0; i < 100; ++i) numbers.push_back(begin + i);
    insert(index, model, numbers, false, random);
  }
  check_contents(index, model);
  int64_t leaves = 0;
  for (int64_t id = index_root + 1; id < index.capacity; ++id)
    leaves += index.nodes.data()[id * index_node_words + 1] >> 32 == 0;
  expect(leaves > children && index.nodes.data()[index_node_words + 1] >> 32 == 1, "more leaves than one parent names");
  numbers.clear();
  for (const auto& [key, value] : model) numbers.push_back(number_of<key_words>(key));
  // All but what two unnamed leaves at the end hold: the root's only child then has a neighbour.
  const auto rest = numbers.end() - (2 * per_leaf - 10);
  erase(index, model, {numbers.begin(), rest});
  check_contents(index, model);
  erase(index, model, {rest, numbers.end()});
  check_contents(index, model);
  expect(index.nodes_in_use() == 1, "what is empty is given back");
}

/// Ascending keys, the oldest erased: what is left behind is full, and memory stays what it is.
template <int key_words>
void check_window(std::mt19937_64& random) {
  constexpr int64_t batch = 200, window = 5;
  constexpr int per_leaf = IndexNode<key_words>::leaf_capacity;
  Index<key_words> index(batch * (window + 2) / per_leaf + 12);
  Model model;
  for (int64_t round = 0; round < 4 * window; ++round) {
    Words fresh, old;
    for (int64_t i = 0; i < batch; ++i) {
      fresh.push_back(round * batch + i);
      old.push_back((round - window) * batch + i);
    }
    expect(insert(index, model, fresh, false, random) == 0, "refused though there is memory");
    if (round == window - 1) expect(index.nodes_in_use() <= batch * window / (per_leaf * 9 / 10) + 4, "full leaves");
    erase(index, model, old);
    check_contents(index, model);
  }
}

/// The CPU writes what the device reads and changes, and the other way round.
template <int key_words>
void check_shared(std::mt19937_64& random) {
  Index<key_words> index(260);
  Model model;
  const IndexFunctions& cpu = index_functions(key_words);
  for (int round = 0; round < 12; ++round) {
    const Words numbers = random_numbers(500, 2000, random), words = words_of<key_words>(numbers);
    const Words values = random_numbers(500, kGreatest / 4, random);
    std::vector<IndexStatus> status(numbers.size());
    if (round % 3 == 2) {
      cpu.erase_batch(index.cpu(), 500, words.data(), status.data());
      for (int64_t i = 0; i < 500; ++i) model.erase(model_key<key_words>(words, i));
      erase(index, model, random_numbers(600, 2000, random));
    } else {
      cpu.insert_batch(index.cpu(), 500, words.data(), values.data(), true, status.data());
      for (int64_t i = 0; i < 500; ++i) model[model_key<key_words>(words, i)] = values[i];
      check_contents(index, model);
      expect(insert(index, model, random_numbers(400, 2000, random), true, random) == 0, "refused");
    }
    check_contents(index, model);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(7);
#if defined(__SANITIZE_ADDRESS__)
  constexpr int rounds = 30;  // each is ten times slower
#else
  constexpr int rounds = 120;
#endif
  check_mixed<1>(rounds, random);
  check_mixed<2>(rounds, random);
  check_large<1>(random);
  check_large<2>(random);
  for (const int64_t capacity : {2, 4, 5, 30, 52}) {
    check_full<1>(capacity, random);
    check_full<2>(capacity, random);
  }
  simt::for_each_schedule([&] {
    check_insert<1>(random);
    check_insert<2>(random);
  });
  check_shapes<1>(random);
  check_shapes<2>(random);
  check_ascending<1>(random);
  check_ascending<2>(random);
  check_unnamed<1>(random);
  check_unnamed<2>(random);
  check_window<1>(random);
  check_window<2>(random);
  check_shared<1>(random);
  check_shared<2>(random);
  std::puts("index_update: ok");
}
