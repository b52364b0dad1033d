// Point operations and batches of several threads are linearizable: thousands of short recorded runs over few keys, in
// nodes so small that they split and merge all the time, with threads let in between at every lock and every check.
#define ANABRANCH_INDEX_NODE_WORDS 32  // leaves of 12 keys
#include <unistd.h>

#include <array>
#include <barrier>

#include "index_yields.hpp"
// The yields come before the index.
#include "index_case.hpp"
#include "index_history.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;
using Index = BSkipList<int64_t>;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int runs = 600;
#else
constexpr int runs = 4000;
#endif
constexpr int threads = 4, operations = 40;

void check_the_checker() {
  context = "checker";
  const auto possible = [](const History& history, std::map<int64_t, uint64_t> before = {}) {
    return !first_impossible_key(history, before).has_value();
  };
  // Key, operation, value, result, invoked, responded.
  expect(possible({}), "nothing");
  expect(possible({{1, Op::insert, 5, true, 0, 1}, {1, Op::find, 5, true, 2, 3}}), "one after another");
  expect(!possible({{1, Op::insert, 5, true, 0, 1}, {1, Op::find, 0, false, 2, 3}}), "a key that is there is missed");
  expect(possible({{1, Op::insert, 5, true, 0, 3}, {1, Op::find, 0, false, 1, 2}}), "at once, either order");
  expect(possible({{1, Op::insert, 5, true, 0, 3}, {1, Op::find, 5, true, 1, 2}}), "at once, the other order");
  expect(!possible({{1, Op::insert, 5, true, 0, 3}, {1, Op::find, 6, true, 1, 2}}), "a value that nobody wrote");
  expect(!possible({{1, Op::insert, 5, true, 0, 9}, {1, Op::find, 5, true, 1, 2}, {1, Op::find, 0, false, 3, 4}}),
         "found, then not found");
  expect(!possible({{1, Op::insert, 5, true, 0, 3}, {1, Op::insert, 6, true, 1, 2}}), "both inserted it");
  expect(!possible({{1, Op::insert, 5, false, 0, 3}, {1, Op::insert, 6, false, 1, 2}}), "neither inserted it");
  expect(!possible({{1, Op::erase, 0, true, 0, 3}, {1, Op::erase, 0, true, 1, 2}}, {{1, 4}}), "both erased it");
  expect(!possible({{1, Op::assign, 5, false, 0, 1}, {1, Op::find, 4, true, 2, 3}}, {{1, 4}}), "a lost update");
  expect(!possible({{1, Op::insert, 5, false, 0, 1}, {1, Op::find, 5, true, 2, 3}}, {{1, 4}}), "insert overwrites");
  const History swapped{{1, Op::assign, 5, false, 0, 1}, {1, Op::assign, 6, false, 2, 3}, {1, Op::find, 5, true, 4, 5}};
  expect(!possible(swapped, {{1, 4}}), "the older value comes back");
  History keys{{1, Op::insert, 5, true, 0, 9}, {2, Op::insert, 6, true, 1, 2}, {1, Op::find, 0, false, 3, 4}};
  expect(possible(keys), "keys do not see each other");
  keys.push_back({2, Op::erase, 0, false, 3, 4});
  expect(!possible(keys), "the second key is looked at too");
  // Three at once, of which one order alone is possible; then a history of the full 64 events.
  expect(
      possible({{1, Op::erase, 0, true, 0, 5}, {1, Op::insert, 7, true, 1, 6}, {1, Op::find, 7, true, 2, 7}}, {{1, 4}}),
      "one order of three");
  expect(!possible({{1, Op::erase, 0, true, 0, 5},
                    {1, Op::insert, 7, true, 1, 6},
                    {1, Op::find, 7, true, 8, 9},
                    {1, Op::find, 4, true, 10, 11}},
                   {{1, 4}}),
         "no order of four");
  History many;
  for (int64_t i = 0; i < 64; ++i) many.push_back({1, i % 2 ? Op::erase : Op::insert, 3, true, 2 * i, 2 * i + 7});
  expect(possible(many), "64 events, several at once");
  many.back().op = Op::insert;
  expect(!possible(many), "64 events, one insert too many");
}

/// One run: what each thread does follows from the seed, what happens in between from the machine.
class Run {
 public:
  explicit Run(uint64_t seed) : seed_(seed), index_(512) {
    Interruption random;
    random.random = seed * 0x9e3779b97f4a7c15 + 1;
    const auto density = random.next() % 100;
    growth_ = static_cast<int>(random.next() % 3);
    universe_ = std::array<int64_t, 3>{24, 64, 256}[random.next() % 3];  // of one level, of two, and of three
    for (int64_t key = 0; key < universe_; ++key) {
      if (random.next() % 100 >= density) continue;
      before_[key] = random.next() % 1000;
      index_.insert(key, before_[key]);
    }
    hot_ = static_cast<int64_t>(random.next() % static_cast<uint64_t>(universe_ - 8));
    if (random.next() % 4 == 0) forget_entries(index_, 50);
    for (int thread = 0; thread < threads; ++thread) recorders_.emplace_back(index_, clock_);
  }

  void work(int thread, bool planted) {
    Interruption& mine = interruption;
    mine.random = seed_ * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(thread) * 0xbf58476d1ce4e5b9 + 7;
    mine.one_in = 1 << (2 + mine.next() % 5);
    Recorder<Index>& recorder = recorders_[thread];
    for (int i = 0; i < operations;) {
      const uint64_t kind = mine.next() % 20;
      // Of a run's three moods one inserts more, one erases more.
      const Op op = kind < 6                                            ? Op::find
                    : kind < 6 + 4 + 3 * static_cast<uint64_t>(growth_) ? (kind % 2 ? Op::insert : Op::assign)
                                                                        : Op::erase;
      const bool is_hot = mine.next() % 2;
      int64_t key = is_hot ? hot_ + static_cast<int64_t>(mine.next() % 8)
                           : static_cast<int64_t>(mine.next() % static_cast<uint64_t>(universe_));
      mine.believes_all = planted && op == Op::find;
      if (mine.next() % 8 == 0) {
        std::vector<int64_t> keys;
        std::vector<uint64_t> values;
        for (int n = 0; n < 6; ++n, key = (key + 1) % universe_) {
          keys.push_back(key);
          values.push_back(next_value(thread, i++));
        }
        recorder.batch(op, keys, values);
      } else {
        recorder.point(op, key, next_value(thread, i++));
      }
      mine.believes_all = false;
    }
    mine.one_in = 0;
  }

  /// What is wrong with it, or nothing. Nobody works any more; what is there now belongs to the history.
  std::string problem() {
    for (int64_t key = 0; key < universe_; ++key) recorders_[0].point(Op::find, key, 0);
    History history;
    for (const auto& recorder : recorders_)
      history.insert(history.end(), recorder.history.begin(), recorder.history.end());
    if (const auto key = first_impossible_key(history, before_)) {
      std::string text = "key " + std::to_string(*key) + " in the run of seed " + std::to_string(seed_);
      for (const Event& e : history) {
        if (e.key != *key) continue;
        constexpr const char* names[] = {"insert", "assign", "erase", "find"};
        text += "\n  " + std::to_string(e.invoked) + ".." + std::to_string(e.responded) + " " +
                names[static_cast<int>(e.op)] + " " + std::to_string(e.value) + (e.result ? ": yes" : ": no");
      }
      return text;
    }
    return index_.validate();
  }

 private:
  static uint64_t next_value(int thread, int i) { return 1000 + static_cast<uint64_t>(thread * operations * 2 + i); }

  uint64_t seed_;
  Index index_;
  std::map<int64_t, uint64_t> before_;
  int64_t universe_, hot_;
  int growth_ = 0;
  std::atomic<int64_t> clock_{0};
  std::vector<Recorder<Index>> recorders_;
};

/// The first problem of up to `count` runs, or nothing.
std::string first_problem(int count, bool planted) {
  std::string problem;
  std::optional<Run> run(std::in_place, 1);
  bool more = true;
  uint64_t seed = 1;
  std::barrier begin(threads);
  std::barrier end(threads, [&]() noexcept {
    problem = run->problem();
    more = problem.empty() && static_cast<int>(seed) < count;
    if (more) run.emplace(++seed);
  });
  const auto work = [&](int thread) {
    while (more) {
      begin.arrive_and_wait();
      run->work(thread, planted);
      end.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return problem;
}

}  // namespace

int main() {
  alarm(100);
  parallel_backend().num_threads = [] { return 1; };
  check_the_checker();
  context = "linearizable";
  const std::string problem = first_problem(runs, false);
  expect(problem.empty(), problem);
  expect(!first_problem(runs, true).empty(), "a planted bug is not found");
  std::puts("index linearizable: ok");
}
