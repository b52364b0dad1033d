// Readers, writers, erasers, scans and batches on four threads at once, for a bounded number of operations, in nodes of
// the size that users have. With SANITIZE=thread this is the index's race test.
#include <unistd.h>

#include <atomic>
#include <thread>

#include "index_crowd.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int scale = 1;
#else
constexpr int scale = 8;
#endif
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

/// Nodes that threads take and give back: nobody has one that another has.
void check_nodes() {
  context = "nodes taken and given back";
  const OwnedIndexArena arena(1, 10);
  std::atomic<int> owners[10] = {};
  on_threads(
      [&](int) {
        for (int i = 0; i < 5000 * scale; ++i) {
          uint32_t taken[2];
          for (uint32_t& id : taken) {
            id = arena.view().take_node();
            if (id != 0) expect(owners[id]++ == 0, "a node has two owners");
          }
          for (const uint32_t id : taken) {
            if (id == 0) continue;
            --owners[id];
            arena.view().give_back_node(id);
          }
        }
      },
      10);
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
  check_nodes();
  std::puts("index stress: ok");
}
