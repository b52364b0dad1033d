// Calls of the Python object on whole arrays: the GIL is let go, threads share the work.
//
// Arrays are contiguous and of 64-bit words: Python has looked at dtypes, shapes and devices.
#pragma once

#include <nanobind/ndarray.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "host.hpp"
#include "host_index.hpp"

namespace anabranch {

using HostIn = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using HostOut = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;
using HostMask = nb::ndarray<bool, nb::c_contig, nb::device::cpu>;
using HostStatus = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;

inline void find_in(const HostIndex& index, const char* op, const HostIn& keys, const HostOut& values,
                    const HostMask& found, int threads) {
  const HostIndex::Memory memory = index.keep();
  const auto n = static_cast<int64_t>(values.size());
  const nb::gil_scoped_release unlocked;
  const HostThreads workers(threads);
  const HostKeyArray words(op, index.key, keys.data(), n);
  index.functions.find_batch(memory->view(), n, words.words(), values.data(), found.data());
}

inline void lower_bound_in(const HostIndex& index, const char* op, const HostIn& keys, const HostOut& found_keys,
                           const HostOut& values, const HostMask& found, int threads) {
  const HostIndex::Memory memory = index.keep();
  const auto n = static_cast<int64_t>(values.size());
  const nb::gil_scoped_release unlocked;
  const HostThreads workers(threads);
  const HostKeyArray words(op, index.key, keys.data(), n);
  int64_t* to = found_keys.data();
  index.functions.lower_bound_batch(memory->view(), n, words.words(), to, values.data(), found.data());
  for (int64_t i = 0; i < n; ++i) {
    if (found.data()[i]) keys_of_words(index.key, to + i * index.key_words, 1);
  }
}

inline void insert_in(const HostIndex& index, const char* op, const HostIn& keys, const HostIn& values, bool assign,
                      const HostStatus& status, int threads) {
  const HostIndex::Memory memory = index.keep();
  const auto n = static_cast<int64_t>(values.size());
  const nb::gil_scoped_release unlocked;
  const HostThreads workers(threads);
  const HostKeyArray words(op, index.key, keys.data(), n);
  index.functions.insert_batch(memory->view(), n, words.words(), values.data(), assign,
                               reinterpret_cast<IndexStatus*>(status.data()));
}

inline void erase_in(const HostIndex& index, const char* op, const HostIn& keys, const HostStatus& status,
                     int threads) {
  const HostIndex::Memory memory = index.keep();
  const auto n = static_cast<int64_t>(status.size());
  const nb::gil_scoped_release unlocked;
  const HostThreads workers(threads);
  const HostKeyArray words(op, index.key, keys.data(), n);
  index.functions.erase_batch(memory->view(), n, words.words(), reinterpret_cast<IndexStatus*>(status.data()));
}

inline void bulk_load_in(const HostIndex& index, const char* op, const HostIn& keys, const HostIn& values,
                         int threads) {
  const HostIndex::Memory memory = index.keep();
  const auto n = static_cast<int64_t>(values.size());
  int64_t bad = 0;
  index_detail::BulkLoad outcome;
  {
    const nb::gil_scoped_release unlocked;
    const HostThreads workers(threads);
    const HostKeyArray words(op, index.key, keys.data(), n);
    outcome = index.functions.bulk_load(memory->view(), n, words.words(), values.data(), &bad);
  }
  check(outcome != index_detail::BulkLoad::not_empty, op, ": the index has keys, must be empty; clear() it");
  check(outcome != index_detail::BulkLoad::not_ascending, op, ": keys[", bad,
        "] is not greater than the key before it, must be; sort the keys and drop repetitions");
  if (outcome == index_detail::BulkLoad::full) index.raise_full(op);
}

/// Words that grow, and then belong to an array of numpy.
class HostWordsBuffer {
 public:
  void reserve(int64_t words) {
    void* bytes = std::realloc(words_.get(), std::max<int64_t>(words, 1) * 8);
    if (!bytes) throw std::bad_alloc();
    static_cast<void>(words_.release());
    words_.reset(static_cast<int64_t*>(bytes));
  }
  int64_t* data() const { return words_.get(); }

  nb::object array(int64_t rows, int columns) {
    reserve(rows * columns);
    int64_t* words = words_.release();
    const nb::capsule owner(words, [](void* bytes) noexcept { std::free(bytes); });
    const std::size_t shape[2] = {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)};
    return nb::cast(nb::ndarray<nb::numpy, int64_t>(words, columns == 1 ? 1 : 2, shape, owner));
  }

 private:
  struct Free {
    void operator()(int64_t* words) const { std::free(words); }
  };
  std::unique_ptr<int64_t[], Free> words_;
};

/// Up to `limit` entries in order as arrays (keys, values); where `exact`, as of one moment, writers waiting meanwhile.
inline nb::tuple collect(const HostIndex& index, const HostBounds& bounds, int64_t limit, bool exact) {
  const HostIndex::Memory memory = index.keep();
  HostWordsBuffer keys, values;
  int64_t count = 0;
  {
    const nb::gil_scoped_release unlocked;
    const IndexArena& arena = memory->view();
    std::optional<IndexPause> pause;
    if (exact) pause.emplace(arena);
    constexpr int64_t few = 1 << 12;
    HostBounds rest = bounds;
    const int w = index.key_words;
    int64_t room = limit <= few ? limit : index.functions.range_count(arena, rest.first.words, rest.last.words);
    room = std::min(room, limit);
    while (rest.any) {
      keys.reserve(room * w);
      values.reserve(room);
      count += index.functions.range(arena, rest.first.words, rest.last.words, room - count, keys.data() + count * w,
                                     values.data() + count);
      if (count < room || count == limit) break;
      // Others have written since the entries were counted, or the last of them was the last one.
      if (count > 0) {
        std::copy_n(keys.data() + (count - 1) * w, w, rest.first.words);
        rest.any = HostBounds::step(index.key, rest.first, true);
      }
      room = std::min(limit, room + std::max(few, room / 4));
    }
    keys_of_words(index.key, keys.data(), count * (w == 1));
  }
  return nb::make_tuple(keys.array(count, index.key_words), values.array(count, 1));
}

}  // namespace anabranch
