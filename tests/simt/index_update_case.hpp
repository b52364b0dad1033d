// Batches that go to the device and to the map: what each key's status must be.
#pragma once

#include "anabranch/index/erase.cuh"
#include "anabranch/index/insert.cuh"
#include "index_case.hpp"

/// Inserts on the device and in the model. Where keys are refused the model follows; returns how many were.
template <int key_words>
int64_t insert(Index<key_words>& index, Model& model, const Words& numbers, bool assign, std::mt19937_64& random) {
  const auto n = static_cast<int64_t>(numbers.size());
  const Words words = words_of<key_words>(numbers);
  Guarded<int64_t> keys(words), values(random_numbers(n, kGreatest / 4, random));
  Guarded<int64_t> scratch(index_insert_scratch<key_words>(n));
  Guarded<uint8_t> status(n);
  index_insert_cuda<key_words>(index.cuda(), n, keys.data(), values.data(), assign,
                               reinterpret_cast<IndexStatus*>(status.data()), scratch.data(), nullptr);
  int64_t refused = 0;
  std::map<std::pair<int64_t, int64_t>, bool> refused_keys;
  for (int64_t i = 0; i < n; ++i) {
    const auto key = model_key<key_words>(words, i);
    const auto got = static_cast<IndexStatus>(status.data()[i]);
    expect(refused_keys.try_emplace(key, got == IndexStatus::refused).first->second == (got == IndexStatus::refused),
           "equal keys are refused together");
    if (got == IndexStatus::refused) {
      expect(!model.contains(key), "a key that is there was refused");
      ++refused;
      continue;
    }
    const bool is_new = model.try_emplace(key, values.data()[i]).second;
    if (assign) model[key] = values.data()[i];
    expect(got == (is_new ? IndexStatus::changed : IndexStatus::unchanged), "status of insert");
  }
  return refused;
}

template <int key_words>
void erase(Index<key_words>& index, Model& model, const Words& numbers) {
  const auto n = static_cast<int64_t>(numbers.size());
  const Words words = words_of<key_words>(numbers);
  Guarded<int64_t> keys(words), scratch(index_erase_scratch<key_words>(n));
  Guarded<uint8_t> status(n);
  index_erase_cuda<key_words>(index.cuda(), n, keys.data(), reinterpret_cast<IndexStatus*>(status.data()),
                              scratch.data(), nullptr);
  for (int64_t i = 0; i < n; ++i) {
    const bool was_there = model.erase(model_key<key_words>(words, i)) == 1;
    expect(static_cast<IndexStatus>(status.data()[i]) == (was_there ? IndexStatus::changed : IndexStatus::unchanged),
           "status of erase");
  }
}
