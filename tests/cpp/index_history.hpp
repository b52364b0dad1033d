// Histories of point operations, and whether they could have happened one at a time (linearizability: Herlihy and Wing,
// TOPLAS 1990). Operations on different keys do not see each other, so each key's history is searched alone, by
// Wing and Gong's search with what was visited remembered (Lowe, 2017).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "anabranch/index/bskiplist.hpp"

namespace anabranch::testing {

enum class Op : uint8_t { insert, assign, erase, find };

/// One operation on one key as its thread saw it. Times are tickets of one counter.
struct Event {
  int64_t key;
  Op op;
  uint64_t value = 0;   // that was given, or found
  bool result = false;  // insert and assign: the key was new; erase and find: it was there
  int64_t invoked = 0, responded = 0;
};

using History = std::vector<Event>;
using State = std::optional<uint64_t>;

/// The state after the event, if it can happen in this one with the result it had.
inline std::optional<State> after(const Event& event, const State& state) {
  const bool result = event.op == Op::insert || event.op == Op::assign ? !state : state.has_value();
  if (event.result != result) return std::nullopt;
  switch (event.op) {
    case Op::insert:
      return state ? state : State(event.value);
    case Op::assign:
      return State(event.value);
    case Op::erase:
      return State();
    case Op::find:
      if (state && *state != event.value) return std::nullopt;
      return state;
  }
  return std::nullopt;
}

/// The history of one key, of at most 64 events, from the state it had before.
class KeyChecker {
 public:
  KeyChecker(History events, State before) : events_(std::move(events)), before_(before) {
    check(events_.size() <= 64, "KeyChecker: there are ", events_.size(),
          " events, must be at most 64; shorten the run");
    std::sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) { return a.invoked < b.invoked; });
  }
  bool is_linearizable() { return search(0, before_); }

 private:
  bool search(uint64_t done, const State& state) {
    const uint64_t all = events_.size() == 64 ? ~uint64_t{0} : (uint64_t{1} << events_.size()) - 1;
    if (done == all) return true;
    if (!visited_.emplace(done, state).second) return false;
    // What was invoked after another has responded cannot go before it.
    int64_t first_response = std::numeric_limits<int64_t>::max();
    for (size_t i = 0; i < events_.size(); ++i) {
      if (!(done >> i & 1)) first_response = std::min(first_response, events_[i].responded);
    }
    for (size_t i = 0; i < events_.size() && events_[i].invoked < first_response; ++i) {
      if (done >> i & 1) continue;
      const auto then = after(events_[i], state);
      if (then && search(done | uint64_t{1} << i, *then)) return true;
    }
    return false;
  }

  History events_;
  State before_;
  std::set<std::pair<uint64_t, State>> visited_;
};

/// The first key whose history could not have happened, or none. `before` are the entries there were.
inline std::optional<int64_t> first_impossible_key(const History& history, const std::map<int64_t, uint64_t>& before) {
  std::map<int64_t, History> of_key;
  for (const Event& event : history) of_key[event.key].push_back(event);
  for (const auto& [key, events] : of_key) {
    const auto at = before.find(key);
    if (!KeyChecker(events, at == before.end() ? State() : State(at->second)).is_linearizable()) return key;
  }
  return std::nullopt;
}

/// A thread's operations on an index, with their times.
template <class Index>
class Recorder {
 public:
  Recorder(Index& index, std::atomic<int64_t>& clock) : index_(index), clock_(clock) {}

  void point(Op op, int64_t key, uint64_t value) {
    Event event{key, op, value};
    event.invoked = clock_++;
    if (op == Op::insert) event.result = index_.insert(key, value);
    if (op == Op::assign) event.result = index_.insert_or_assign(key, value);
    if (op == Op::erase) event.result = index_.erase(key);
    if (op == Op::find) {
      const State found = index_.find(key);
      event.result = found.has_value();
      event.value = found.value_or(0);
    }
    event.responded = clock_++;
    history.push_back(event);
  }

  /// Different keys; each may take effect at any time while the batch runs.
  void batch(Op op, const std::vector<int64_t>& keys, std::vector<uint64_t> values) {
    const size_t n = keys.size();
    std::vector<char> results(n);
    const int64_t invoked = clock_++;
    if (op == Op::find) {
      static_assert(sizeof(bool) == 1);
      index_.find(keys, values, std::span(reinterpret_cast<bool*>(results.data()), n));
    } else {
      std::vector<IndexStatus> status(n);
      if (op == Op::erase) {
        index_.erase(keys, status);
      } else {
        index_.insert(keys, values, status, op == Op::assign);
      }
      for (size_t i = 0; i < n; ++i) results[i] = status[i] == IndexStatus::changed;
    }
    const int64_t responded = clock_++;
    for (size_t i = 0; i < n; ++i) history.push_back({keys[i], op, values[i], results[i] != 0, invoked, responded});
  }

  History history;

 private:
  Index& index_;
  std::atomic<int64_t>& clock_;
};

}  // namespace anabranch::testing
