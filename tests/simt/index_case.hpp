// An index that the device kernels and the CPU work on, and the map that it must be equal to.
#pragma once

#include <limits>
#include <map>

#include "anabranch/index/functions.hpp"
#include "anabranch/index/node.cuh"
#include "guarded.hpp"

using namespace anabranch;

inline constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kGreatest = std::numeric_limits<int64_t>::max();

using Words = std::vector<int64_t>;

/// An empty index that both sides work on.
template <int key_words>
struct Index {
  explicit Index(int64_t capacity)
      : control(Words(IndexControl::words, 0), 0), nodes(Words(capacity * index_node_words, 0)), capacity(capacity) {
    cpu().format(key_words, capacity);
  }
  IndexArena cpu() { return {control.data(), nodes.data()}; }
  IndexArrays cuda() { return {control.data(), nodes.data(), capacity}; }
  void validate() {
    const std::string problem = validate_index(cpu(), key_words);
    expect(problem.empty(), problem.c_str());
  }
  int64_t nodes_in_use() {
    int64_t count = control.data()[IndexControl::used] - index_root;
    for (auto id = static_cast<uint32_t>(control.data()[IndexControl::free_head]); id != 0;
         id = static_cast<uint32_t>(cpu().node(id)[IndexNode<key_words>::next]))
      --count;
    return count;
  }

  Guarded<int64_t> control, nodes;
  int64_t capacity;
};

/// One key as the tests name it: its number, spread over the words so that both matter.
template <int key_words>
std::vector<int64_t> words_of(const Words& numbers) {
  if constexpr (key_words == 1) return numbers;
  Words words;
  for (const int64_t number : numbers) {
    const bool end = number == kLeast || number == kGreatest;
    words.push_back(end ? number : number >> 2);
    words.push_back(end ? number : ((number & 3) - 2) * (kGreatest / 2));
  }
  return words;
}

/// The number that became this key.
template <int key_words>
int64_t number_of(std::pair<int64_t, int64_t> key) {
  if (key_words == 1 || key.first == kLeast || key.first == kGreatest) return key.first;
  return key.first * 4 + key.second / (kGreatest / 2) + 2;
}

inline Words random_numbers(int64_t n, int64_t spread, std::mt19937_64& random) {
  Words numbers;
  for (int64_t i = 0; i < n; ++i)
    numbers.push_back(static_cast<int64_t>(random() % (2 * static_cast<uint64_t>(spread))) - spread);
  return numbers;
}

using Model = std::map<std::pair<int64_t, int64_t>, int64_t>;

template <int key_words>
std::pair<int64_t, int64_t> model_key(const Words& words, int64_t i) {
  return {words[i * key_words], key_words == 2 ? words[i * key_words + 1] : 0};
}

/// The index holds what the model holds, no more, and is in order.
template <int key_words>
void check_contents(Index<key_words>& index, const Model& model) {
  index.validate();
  const auto size = static_cast<int64_t>(model.size());
  expect(index.cpu().size() == size, "size");
  Words least(key_words, kLeast), greatest(key_words, kGreatest), keys((size + 1) * key_words), values(size + 1);
  const int64_t n = index_functions(key_words).range(index.cpu(), least.data(), greatest.data(), size + 1, keys.data(),
                                                     values.data());
  expect(n == size, "number of entries");
  int64_t i = 0;
  for (const auto& [key, value] : model) {
    expect(model_key<key_words>(keys, i) == key && values[i] == value, "entries");
    ++i;
  }
}
