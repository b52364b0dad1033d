// Readers, writers, erasers, scans and batches on four threads at once, for a bounded number of operations, in nodes of
// the size that users have. With SANITIZE=thread this is the index's race test.
//
// Values derive from keys, so that a value at the wrong key shows; multiples of 4 are never erased; of the other keys
// each belongs to one thread, which knows whether it is there.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "index_yields.hpp"
// The yields come before the index.
#include "index_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int scale = 1;
#else
constexpr int scale = 8;
#endif
constexpr int num_workers = 4;

void on_threads(const std::function<void(int)>& work, int yield_one_in) {
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

int64_t drawn(int64_t n) { return static_cast<int64_t>(interruption.next() % static_cast<uint64_t>(n)); }

/// 56 bits of the key's, 8 bits of anything.
template <class Key>
uint64_t value_of(const Key& key, uint64_t tag = 0) {
  return static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15 << 8 | (tag & 255);
}
bool derives(int64_t key, uint64_t value) { return value >> 8 == value_of(key) >> 8; }
/// Of the keys below n that are no multiples of 4, the i-th of a thread.
int64_t own_key(int thread, int64_t i) {
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

/// Updates race inserts and erases in one leaf. Each thread counts up at a key of its own and must find its last count.
void check_hot_leaf() {
  context = "updates in a hot leaf";
  BSkipList<int64_t> index;
  for (int64_t thread = 0; thread < num_workers; ++thread) index.insert(thread * 10, 0);
  on_threads(
      [&](int thread) {
        std::vector<uint64_t> last(num_workers);
        for (uint64_t count = 1; count <= 6000 * scale; ++count) {
          const int64_t key = thread * 10;
          expect(!index.insert_or_assign(key, count), "update");
          const int64_t beside = drawn(num_workers) * 10 + 1 + thread + drawn(2) * 4;
          expect(index.insert(beside, beside), "insert beside it");
          expect(index.find(key) == count, "an update is lost");
          const int other = static_cast<int>(drawn(num_workers));
          const auto seen = index.find(other * 10);
          expect(seen && *seen >= last[other], "another's counter goes back");
          last[other] = *seen;
          expect(index.erase(beside), "erase beside it");
        }
      },
      40);
  expect(index.size() == num_workers && index.validate().empty(), "validate: " + index.validate());
}

/// Two threads scan all while two erase all and insert it again: both come to an end.
void check_delete_while_scanning() {
  context = "erase while scanning";
  constexpr int64_t n = 3000;
  BSkipList<int64_t> index;
  on_threads(
      [&](int thread) {
        for (int round = 0; round < 5 * scale; ++round) {
          if (thread < 2) {
            for (int64_t i = 0; i < n; ++i) index.insert(2 * (round % 2 ? n - i : i) + thread, i);
            for (int64_t i = 0; i < n; ++i) expect(index.erase(2 * i + (round % 2 ? 2 : 0) + thread), "erase");
          } else {
            int64_t last = -1;
            for (const auto [key, value] : index) {
              expect(key > last && value < n, "a scan is in order");
              last = key;
            }
          }
        }
      },
      200);
  expect(index.empty() && index.validate().empty(), "validate: " + index.validate());
}

/// An arena too small for all: what was refused was refused, and what was not is there.
void check_full_arena() {
  context = "a full arena";
  BSkipList<int64_t> index(40);
  std::atomic<int64_t> refused{0};
  on_threads(
      [&](int thread) {
        std::vector<char> there(700, false);
        for (int i = 0; i < 8000 * scale; ++i) {
          const int64_t own = drawn(700), key = own * num_workers + thread;
          if (drawn(3) == 0) {
            expect(index.erase(key) == static_cast<bool>(there[own]), "erase");
            there[own] = false;
            continue;
          }
          try {
            expect(index.insert(key, value_of(key)) == !there[own], "insert");
            there[own] = true;
          } catch (const std::bad_alloc&) {
            expect(!there[own], "a key that is there is found where memory has ended");
            ++refused;
          }
        }
        for (int64_t own = 0; own < 700; ++own)
          expect(index.contains(own * num_workers + thread) == static_cast<bool>(there[own]),
                 "what was not refused is there");
      },
      100);
  expect(refused > 0 && index.validate().empty(), "validate: " + index.validate());
}

/// While a pause lasts, two scans see the same, and the size is right.
void check_pauses() {
  context = "pauses";
  BSkipList<int64_t> index;
  on_threads(
      [&](int thread) {
        for (int i = 0; i < 4000 * scale; ++i) {
          if (thread > 0) {
            const int64_t key = drawn(1000);
            drawn(2) ? index.insert(key, i) : index.erase(key);
          } else if (i % 100 == 0) {
            const IndexPause pause(index.arena());
            std::vector<std::pair<int64_t, uint64_t>> first, second;
            for (const auto entry : index) first.push_back(entry);
            std::this_thread::yield();
            for (const auto entry : index) second.push_back(entry);
            expect(first == second && index.size() == static_cast<int64_t>(first.size()), "somebody wrote in a pause");
          }
        }
      },
      100);
  expect(index.validate().empty(), "validate: " + index.validate());
}

}  // namespace

int main() {
  alarm(100);  // threads that wait for each other for ever are a failure, too
  parallel_backend().num_threads = [] { return 1; };
  context = "a crowd in three levels";
  Crowd<std::less<>>(40000).run(5000 * scale, 300);
  context = "a crowd, descending";
  Crowd<std::greater<>>(2400).run(5000 * scale, 50);
  context = "a crowd in a few leaves";
  Crowd<std::less<>>(240).run(5000 * scale, 20);
  check_hot_leaf();
  check_delete_while_scanning();
  check_full_arena();
  check_pauses();
  std::puts("index stress: ok");
}
