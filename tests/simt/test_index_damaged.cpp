// The index's kernels on memory that is damaged or no index at all. AddressSanitizer sees what they read.
#include "anabranch/index/find.cuh"
#include "index_update_case.hpp"

namespace {

/// Memory that is no index, or a damaged one: any answer, but the kernels end and stay within the arrays.
template <int key_words>
void check_garbage(int rounds, std::mt19937_64& random) {
  for (int round = 0; round < rounds; ++round) {
    Index<key_words> index(2 + static_cast<int64_t>(random() % 40));
    const Words before = words_of<key_words>(random_numbers(1500, 3000, random));
    std::vector<IndexStatus> inserted(1500);
    index_functions(key_words).insert_batch(index.cpu(), 1500, before.data(), before.data(), false, inserted.data());
    const auto words = static_cast<uint64_t>(index.nodes.size());
    for (uint64_t hits = random() % 4 ? 1 + random() % 60 : words; hits > 0; --hits) {
      int64_t& word = index.nodes.data()[random() % words];
      switch (random() % 4) {
        case 0:
          word = static_cast<int64_t>(random());
          break;
        case 1:
          word ^= int64_t{1} << random() % 64;
          break;
        case 2:  // a plausible header
          index.nodes.data()[random() % words / index_node_words * index_node_words + 1 + random() % 2] =
              static_cast<int64_t>(random() % 60 + (random() % 3 << 32));
          break;
        default:
          word = index.nodes.data()[random() % words];
      }
    }
    int64_t* control = index.control.data();
    if (random() % 2) control[IndexControl::used] = static_cast<int64_t>(random() % 2 ? random() : random() % 50);
    if (random() % 2) control[IndexControl::free_head] = static_cast<int64_t>(random() % 2 ? random() : random() % 50);
    if (random() % 8 == 0) control[random() % 4] = static_cast<int64_t>(random());
    for (const int64_t n : {300, 40, round % 8 ? 70 : 1030}) {
      Guarded<int64_t> keys(words_of<key_words>(random_numbers(n, 3000, random))), values(n);
      Guarded<uint8_t> status(n);
      Guarded<int64_t> insert_scratch(index_insert_scratch<key_words>(n)), found_keys(n * key_words);
      Guarded<int64_t> erase_scratch(index_erase_scratch<key_words>(n)), gather_scratch(index_gather_scratch(n));
      Guarded<int64_t> offsets(n + 1), gathered(50 * key_words), entries(50);
      Guarded<bool> found(n);
      auto* results = reinterpret_cast<IndexStatus*>(status.data());
      index_erase_cuda<key_words>(index.cuda(), n, keys.data(), results, erase_scratch.data(), nullptr);
      index_insert_cuda<key_words>(index.cuda(), n, keys.data(), values.data(), n == 40, results, insert_scratch.data(),
                                   nullptr);
      if (n != 40) continue;
      index_find_cuda<key_words>(index.cuda(), n, keys.data(), values.data(), found.data(), nullptr);
      index_lower_bound_cuda<key_words>(index.cuda(), n, keys.data(), found_keys.data(), values.data(), found.data(),
                                        nullptr);
      index_gather_cuda<key_words>(index.cuda(), n, keys.data(), found_keys.data(), 50, offsets.data(), gathered.data(),
                                   entries.data(), gather_scratch.data(), nullptr);
    }
  }
}

/// Another header: nothing is found, nothing is inserted, nothing is written.
void check_other_header(std::mt19937_64& random) {
  for (const int word : {IndexControl::format, IndexControl::key_words, IndexControl::capacity}) {
    Index<1> index(9);
    Model model;
    insert(index, model, random_numbers(90, 3000, random), false, random);
    index.control.data()[word] ^= 3;
    const Words nodes = index.nodes.values(), control = index.control.values();
    Model other;
    expect(insert(index, other, random_numbers(70, 3000, random), true, random) == 70, "all are refused");
    erase(index, other, random_numbers(70, 3000, random));
    expect(index.nodes.values() == nodes && index.control.values() == control, "nothing is written");
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(7);
  check_garbage<1>(24, random);
  check_garbage<2>(24, random);
  check_other_header(random);
  std::puts("index_damaged: ok");
}
