// Four threads at once on one index, each checking what the others may not spoil.
//
// Values derive from keys, so that a value at the wrong key shows; multiples of 4 are never erased; of the other keys
// each belongs to one thread, which knows whether it is there.
#pragma once

#include <functional>
#include <thread>

#include "index_yields.hpp"
// The yields come before the index.
#include "index_case.hpp"

namespace anabranch::testing {

inline constexpr int num_workers = 4;

inline void on_threads(const std::function<void(int)>& work, int yield_one_in) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < num_workers; ++thread) {
    threads.emplace_back([=] {
      interruption.random = static_cast<uint64_t>(thread) * 0x9e3779b97f4a7c15 + 1;
      interruption.one_in = yield_one_in;
      work(thread);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline int64_t drawn(int64_t n) { return static_cast<int64_t>(interruption.next() % static_cast<uint64_t>(n)); }

/// 56 bits of the key's, 8 bits of anything.
template <class Key>
uint64_t value_of(const Key& key, uint64_t tag = 0) {
  return static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15 << 8 | (tag & 255);
}
inline bool derives(int64_t key, uint64_t value) { return value >> 8 == value_of(key) >> 8; }
/// Of the keys below n that are no multiples of 4, the i-th of a thread.
inline int64_t own_key(int thread, int64_t i) {
  return (i * num_workers + thread) / 3 * 4 + (i * num_workers + thread) % 3 + 1;
}

template <class Compare>
class Crowd {
 public:
  using Index = BSkipList<int64_t, Compare>;
  static constexpr bool descending = std::is_same_v<Compare, std::greater<>>;

  explicit Crowd(int64_t keys) : keys_(keys), own_(keys * 3 / 4 / num_workers) {
    for (int64_t key = 0; key < keys; key += 4) index_.insert(key, value_of(key));
    for (auto& mine : there_) mine.assign(own_, false);
  }

  void run(int64_t operations, int yield_one_in) {
    on_threads([&](int thread) { work(thread, operations); }, yield_one_in);
    expect(index_.validate().empty(), "validate: " + index_.validate());
    int64_t size = (keys_ + 3) / 4;
    for (int thread = 0; thread < num_workers; ++thread) {
      for (int64_t i = 0; i < own_; ++i) {
        expect(index_.contains(own_key(thread, i)) == there_[thread][i], "what its thread left");
        size += there_[thread][i];
      }
    }
    expect(index_.size() == size && index_.entries().count() == size, "size is the sum of what came and went");
  }

 private:
  void work(int thread, int64_t operations) {
    for (int64_t i = 0; i < operations; ++i) {
      const bool grows = i * 6 / operations % 2 == 0;  // together, so that nodes merge and split all over
      const int64_t kind = drawn(32);
      if (kind < 18) {
        write(thread, drawn(own_), drawn(8) < (grows ? 6 : 2));
      } else if (kind < 20) {
        write_many(thread, drawn(own_), grows);
      } else if (kind < 27) {
        look(thread);
      } else if (kind < 30) {
        look_at_many();
      } else {
        scan();
      }
    }
  }

  void write(int thread, int64_t i, bool inserts) {
    const int64_t key = own_key(thread, i);
    const bool was_there = there_[thread][i];
    if (!inserts) {
      expect(index_.erase(key) == was_there, "erase of an own key");
    } else if (drawn(2)) {
      expect(index_.insert(key, value_of(key, i)) == !was_there, "insert of an own key");
    } else {
      expect(index_.insert_or_assign(key, value_of(key, i)) == !was_there, "assign to an own key");
    }
    there_[thread][i] = inserts;
    expect(index_.contains(key) == inserts, "an own key is as it was left");
    // Assigned by anyone, erased by nobody.
    const int64_t permanent = drawn(keys_ / 4) * 4;
    if (drawn(4) == 0) expect(!index_.insert_or_assign(permanent, value_of(permanent, i)), "assign to a permanent key");
  }

  void write_many(int thread, int64_t first, bool inserts) {
    std::vector<int64_t> keys;
    std::vector<uint64_t> values;
    const int64_t last = std::min(first + drawn(60), own_);
    for (int64_t i = first; i < last; ++i) {
      keys.push_back(own_key(thread, i));
      values.push_back(value_of(keys.back(), i));
    }
    std::vector<IndexStatus> status(keys.size());
    if (inserts) {
      index_.insert(keys, values, status, drawn(2));
    } else {
      index_.erase(keys, status);
    }
    for (int64_t i = first; i < last; ++i) {
      const bool changed = there_[thread][i] != inserts;
      expect(status[i - first] == (changed ? IndexStatus::changed : IndexStatus::unchanged), "a batch of own keys");
      there_[thread][i] = inserts;
    }
  }

  void look(int thread) {
    const int64_t permanent = drawn(keys_ / 4) * 4, any = drawn(keys_), own = drawn(own_);
    const auto found = index_.find(permanent);
    expect(found && derives(permanent, *found), "a permanent key is found");
    const auto value = index_.find(any);
    expect(!value || derives(any, *value), "find: a value of another key");
    expect(index_.contains(own_key(thread, own)) == there_[thread][own], "an own key is as it was left");
    const auto bound = index_.lower_bound(any);
    const int64_t next = descending ? any / 4 * 4 : (any + 3) / 4 * 4;  // the permanent key that bounds it
    const bool there = next < keys_;
    expect(!there || bound, "lower_bound: there is one");
    if (bound) expect(derives(bound->first, bound->second), "lower_bound: a value of another key");
    if (there)
      expect(descending ? bound->first <= any && bound->first >= next : bound->first >= any && bound->first <= next,
             "lower_bound");
    // As readers do that were disturbed too often.
    const index_detail::Tree<compiled_cpu_isa, 1> tree{index_.arena()};
    const auto words = OrderedIndexKey<int64_t, Compare>::to_words(permanent);
    bool holds = false;
    const IndexWriter guest(index_.arena());
    tree.template try_read<index_detail::ReadMode::shared>(
        words, [&](const auto& leaf, uint64_t) { holds = leaf.holds(leaf.lower_bound(words), words); },
        [](const auto&, uint32_t) {});
    expect(holds, "a permanent key is found under locks");
  }

  void look_at_many() {
    std::vector<int64_t> keys(50), bounds(50);
    for (int64_t& key : keys) key = drawn(keys_);
    std::vector<uint64_t> values(50);
    bool found[50];
    index_.find(keys, values, found);
    for (int i = 0; i < 50; ++i) expect(found[i] ? derives(keys[i], values[i]) : keys[i] % 4 != 0, "find of a batch");
    index_.lower_bound(keys, bounds, values, found);
    for (int i = 0; i < 50; ++i) {
      if (keys[i] % 4 == 0) expect(found[i] && bounds[i] == keys[i], "lower_bound of a batch");
      if (found[i]) expect(derives(bounds[i], values[i]), "lower_bound of a batch: a value of another key");
    }
  }

  /// In order, nothing twice, all permanent keys.
  void scan() {
    int64_t low = drawn(keys_), high = std::min(keys_ - 1, low + drawn(600)), permanent = 0;
    if (drawn(64) == 0) low = 0, high = keys_ - 1;
    const int64_t there = high / 4 - (low + 3) / 4 + 1;
    std::optional<int64_t> last;
    const auto range = descending ? index_.range(high, low, true) : index_.range(low, high, true);
    for (const auto [key, value] : range) {
      expect(!last || Compare{}(*last, key), "a scan is in order");
      expect(low <= key && key <= high && derives(key, value), "a scan's entry");
      permanent += key % 4 == 0;
      last = key;
    }
    expect(permanent == there, "a scan sees all permanent keys");
    const int64_t count = range.count();
    expect(there <= count && count <= high - low + 1, "count of a range");
  }

  const int64_t keys_, own_;
  Index index_;
  std::vector<char> there_[num_workers];
};

}  // namespace anabranch::testing
