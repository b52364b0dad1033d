// The index's queries on the harness, against the CPU's on the same memory.
#include "anabranch/index/find.cuh"
#include "index_case.hpp"

namespace {

template <int key_words>
void check_queries(Index<key_words>& index, const Words& numbers) {
  const IndexFunctions& cpu = index_functions(key_words);
  const auto n = static_cast<int64_t>(numbers.size());
  Guarded<int64_t> keys(words_of<key_words>(numbers)), values(n), found_keys(n * key_words);
  Guarded<bool> found(n);
  Words values_cpu(n), found_keys_cpu(n * key_words);
  Guarded<bool> found_cpu(n);
  index_find_cuda<key_words>(index.cuda(), n, keys.data(), values.data(), found.data(), nullptr);
  cpu.find_batch(index.cpu(), n, keys.data(), values_cpu.data(), found_cpu.data());
  expect(values.values() == values_cpu && found.values() == found_cpu.values(), "find");

  index_lower_bound_cuda<key_words>(index.cuda(), n, keys.data(), found_keys.data(), values.data(), found.data(),
                                    nullptr);
  cpu.lower_bound_batch(index.cpu(), n, keys.data(), found_keys_cpu.data(), values_cpu.data(), found_cpu.data());
  expect(values.values() == values_cpu && found.values() == found_cpu.values() && found_keys.values() == found_keys_cpu,
         "lower_bound");

  // Ranges from each number to the one some places on: long, short, and with their ends the wrong way round.
  Words others = numbers;
  std::rotate(others.begin(), others.begin() + n / 3, others.end());
  if (n > 0) others[n / 2] = numbers[n / 2];
  Guarded<int64_t> last(words_of<key_words>(others)), counts(n);
  Words counts_cpu(n);
  index_range_count_cuda<key_words>(index.cuda(), n, keys.data(), last.data(), counts.data(), nullptr);
  cpu.range_count_batch(index.cpu(), n, keys.data(), last.data(), counts_cpu.data());
  expect(counts.values() == counts_cpu, "range_count");

  Words keys_cpu, entries_cpu, offsets_cpu{0};
  for (int64_t i = 0; i < n; ++i) {
    Words some(counts_cpu[i] * key_words), some_values(counts_cpu[i]);
    cpu.range(index.cpu(), keys.data() + i * key_words, last.data() + i * key_words, counts_cpu[i] + 1, some.data(),
              some_values.data());
    keys_cpu.insert(keys_cpu.end(), some.begin(), some.end());
    entries_cpu.insert(entries_cpu.end(), some_values.begin(), some_values.end());
    offsets_cpu.push_back(offsets_cpu.back() + counts_cpu[i]);
  }
  const int64_t total = offsets_cpu.back();
  for (const int64_t capacity : {total, total / 2, int64_t{0}}) {
    Guarded<int64_t> offsets(n + 1), gathered(capacity * key_words), entries(capacity);
    Guarded<int64_t> scratch(index_gather_scratch(n));
    index_gather_cuda<key_words>(index.cuda(), n, keys.data(), last.data(), capacity, offsets.data(), gathered.data(),
                                 entries.data(), scratch.data(), nullptr);
    expect(offsets.values() == offsets_cpu, "gather: offsets");
    expect(gathered.values() == Words(keys_cpu.begin(), keys_cpu.begin() + capacity * key_words), "gather: keys");
    expect(entries.values() == Words(entries_cpu.begin(), entries_cpu.begin() + capacity), "gather: values");
  }
}

template <int key_words>
void check_queries_of_cpu_index(int64_t n, std::mt19937_64& random) {
  Index<key_words> index(n / 10 + 8);
  const int64_t spread = n + 5;
  Words numbers = random_numbers(n, spread, random);
  if (n > 3) numbers[0] = kLeast, numbers[2] = kGreatest;
  const Words keys = words_of<key_words>(numbers), values = random_numbers(n, kGreatest / 4, random);
  std::vector<IndexStatus> status(n);
  index_functions(key_words).insert_batch(index.cpu(), n, keys.data(), values.data(), false, status.data());
  index.validate();
  Words queries = random_numbers(37, spread + 3, random);
  queries.insert(queries.end(), {kLeast, kGreatest, kLeast + 1, kGreatest - 1, 0, spread, kLeast});
  check_queries(index, queries);
}

/// More queries than the grid has groups: each takes several.
void check_turns() {
  Index<1> index(4);
  const int64_t key = 5, n = detail::kIndexBlocks * detail::kIndexThreads / detail::kIndexLanes + 9;
  index_functions(1).insert(index.cpu(), &key, 50, false);
  Words numbers(n, 4);
  numbers[n - 3] = key;
  Guarded<int64_t> keys(numbers), values(n);
  Guarded<bool> found(n);
  index_find_cuda<1>(index.cuda(), n, keys.data(), values.data(), found.data(), nullptr);
  for (int64_t i = 0; i < n; ++i)
    expect(found.data()[i] == (i == n - 3) && values.data()[i] == (i == n - 3 ? 50 : 0), "find in several turns");
}

}  // namespace

int main() {
  std::mt19937_64 random(7);
  check_turns();
  simt::for_each_schedule([&] {
    for (const int64_t n : {0, 1, 59, 61, 700, 6000}) {
      check_queries_of_cpu_index<1>(n, random);
      check_queries_of_cpu_index<2>(n, random);
    }
  });
  std::puts("index: ok");
}
