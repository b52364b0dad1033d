// The index for programs that choose the instruction set at run time: one table of functions for each.
//
// csrc/index/functions_<isa>.cpp compiles the templates once with its flags. A C++ program that is compiled for its
// machine uses bskiplist.hpp and needs none of this.
#pragma once

#include <string>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/index/batch.hpp"
#include "anabranch/index/bulk_load.hpp"

namespace anabranch {

/// Keys are one or two words (key.hpp); key i of a batch is keys[i * key_words]. Ranges are inclusive.
struct IndexFunctions {
  using Key = const int64_t*;

  bool (*find)(const IndexArena&, Key, uint64_t* value);
  /// changed, unchanged (the key was there; it has the value now if `assign`) or refused.
  IndexStatus (*insert)(const IndexArena&, Key, uint64_t value, bool assign);
  bool (*erase)(const IndexArena&, Key, uint64_t* value);
  /// The first key that is not less, or the last that is not greater.
  bool (*lower_bound)(const IndexArena&, Key, int64_t* found, uint64_t* value);
  bool (*last_until)(const IndexArena&, Key, int64_t* found, uint64_t* value);
  int64_t (*range)(const IndexArena&, Key first, Key last, int64_t limit, int64_t* keys, int64_t* values);
  int64_t (*range_count)(const IndexArena&, Key first, Key last);

  void (*find_batch)(const IndexArena&, int64_t n, Key, int64_t* values, bool* found);
  void (*lower_bound_batch)(const IndexArena&, int64_t n, Key, int64_t* found_keys, int64_t* values, bool* found);
  void (*range_count_batch)(const IndexArena&, int64_t n, Key first, Key last, int64_t* counts);
  void (*insert_batch)(const IndexArena&, int64_t n, Key, const int64_t* values, bool assign, IndexStatus*);
  void (*erase_batch)(const IndexArena&, int64_t n, Key, IndexStatus*);
  index_detail::BulkLoad (*bulk_load)(const IndexArena&, int64_t n, Key, const int64_t* values, int64_t* bad);
};

template <CpuIsa isa, int key_words>
IndexFunctions index_functions_for() {
  using namespace index_detail;
  using T = Tree<isa, key_words>;
  using S = Scan<isa, key_words>;
  using B = Batch<isa, key_words>;
  using K = IndexKey<key_words>;
  using Words = const int64_t*;
  IndexFunctions f;
  f.find = [](const IndexArena& a, Words key, uint64_t* value) { return T{a}.find(K::at(key, 0), *value); };
  f.insert = [](const IndexArena& a, Words key, uint64_t value, bool assign) {
    const Outcome outcome = T{a}.insert(K::at(key, 0), value, assign);
    return B::status_of(outcome);
  };
  f.erase = [](const IndexArena& a, Words key, uint64_t* value) { return T{a}.erase(K::at(key, 0), *value); };
  f.lower_bound = [](const IndexArena& a, Words key, int64_t* found, uint64_t* value) {
    K result;
    if (!S::lower_bound(T{a}, K::at(key, 0), result, *value)) return false;
    for (int w = 0; w < key_words; ++w) found[w] = result[w];
    return true;
  };
  f.last_until = [](const IndexArena& a, Words key, int64_t* found, uint64_t* value) {
    K result;
    if (!S::last_until(T{a}, K::at(key, 0), result, *value)) return false;
    for (int w = 0; w < key_words; ++w) found[w] = result[w];
    return true;
  };
  f.range = [](const IndexArena& a, Words first, Words last, int64_t limit, int64_t* keys, int64_t* values) {
    return S::range(T{a}, K::at(first, 0), K::at(last, 0), limit, keys, values);
  };
  f.range_count = [](const IndexArena& a, Words first, Words last) {
    return S::range_count(T{a}, K::at(first, 0), K::at(last, 0));
  };
  f.find_batch = [](const IndexArena& a, int64_t n, Words keys, int64_t* values, bool* found) {
    B::find(T{a}, n, keys, values, found);
  };
  f.lower_bound_batch = [](const IndexArena& a, int64_t n, Words keys, int64_t* found_keys, int64_t* values,
                           bool* found) { B::lower_bound(T{a}, n, keys, found_keys, values, found); };
  f.range_count_batch = [](const IndexArena& a, int64_t n, Words first, Words last, int64_t* counts) {
    B::range_count(T{a}, n, first, last, counts);
  };
  f.insert_batch = [](const IndexArena& a, int64_t n, Words keys, const int64_t* values, bool assign,
                      IndexStatus* status) { B::insert(T{a}, n, keys, values, assign, status); };
  f.erase_batch = [](const IndexArena& a, int64_t n, Words keys, IndexStatus* status) {
    B::erase(T{a}, n, keys, status);
  };
  f.bulk_load = [](const IndexArena& a, int64_t n, Words keys, const int64_t* values, int64_t* bad) {
    return BulkLoader<isa, key_words>::load(T{a}, n, keys, values, *bad);
  };
  return f;
}

IndexFunctions index_functions_portable(int key_words);
IndexFunctions index_functions_avx2(int key_words);
IndexFunctions index_functions_avx512(int key_words);

/// For the instruction set in use; key_words is 1 or 2.
const IndexFunctions& index_functions(int key_words);

/// What is wrong with the structure first, or nothing (validate.hpp). Instruction sets make no difference to it.
std::string validate_index(const IndexArena&, int key_words);

}  // namespace anabranch
