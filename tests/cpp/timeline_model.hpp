// The model of PredictedTimeline's tests: the live edges, components by recomputation, and the work of
// recompute-on-delete; a timeline and its model under one sequence of events; and the events of the experiments on
// work.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "anabranch/index/predicted_timeline.hpp"

namespace anabranch::testing {

inline std::string context;  // what is being tested, for the message
inline std::mt19937_64 random_bits(1);

inline int64_t random_below(int64_t bound) {
  return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(bound));
}

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("%s: %s\n", context.c_str(), what.c_str());
  std::exit(1);
}

template <class Call>
void expect_refusal(const std::string& text, Call call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return expect(error.what() == text, "refused with '" + std::string(error.what()) + "', not with '" + text + "'");
  }
  expect(false, "not refused: " + text);
}

/// The live edges, components by spreading the least vertex, and what recompute-on-delete would have done.
struct Model {
  struct Edge {
    int64_t u, v, expiry;
  };
  explicit Model(int64_t num_nodes) : num_nodes(num_nodes) {}

  std::vector<int64_t> components() const {
    std::vector<int64_t> least(num_nodes);
    std::iota(least.begin(), least.end(), 0);
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [id, edge] : edges) {
        const int64_t both = std::min(least[edge.u], least[edge.v]);
        changed |= least[edge.u] != both || least[edge.v] != both;
        least[edge.u] = least[edge.v] = both;
      }
    }
    return least;
  }

  void erase(int64_t id) {
    edges.erase(id);
    restart |= seen.erase(id) == 1;
  }

  void query() {
    unions += static_cast<int64_t>(restart ? edges.size() : edges.size() - seen.size());
    restart = false;
    for (const auto& [id, edge] : edges) seen.insert(id);
  }

  int64_t num_nodes;
  std::map<int64_t, Edge> edges;
  std::set<int64_t> seen;
  bool restart = false;
  int64_t unions = 0;
};

/// A timeline and its model under one sequence of events.
class Pair {
 public:
  explicit Pair(int64_t num_nodes) : graph_(num_nodes), model_(num_nodes) {}

  int64_t insert(int64_t u, int64_t v, int64_t lifetime) {
    const int64_t id = graph_.insert(u, v, lifetime);
    expect(id == next_id_++, "ids are 0, 1, 2, ...");
    expect(graph_.clock() == ++clock_, "an insertion is an event");
    model_.edges[id] = {u, v, clock_ + std::min(lifetime, std::numeric_limits<int64_t>::max() - clock_)};
    return id;
  }
  void erase(int64_t id) {
    graph_.erase(id);
    expect(graph_.clock() == ++clock_, "an erasure is an event");
    model_.erase(id);
  }
  void advance(int64_t events) {
    graph_.advance(events);
    clock_ += events;
  }

  void check_answers() {
    const auto least = model_.components();
    int64_t components = 0;
    for (int64_t v = 0; v < model_.num_nodes; ++v) components += least[v] == v;
    model_.query();
    expect(graph_.num_components() == components, "num_components");
    for (int i = 0; i < 8 && model_.num_nodes > 0; ++i) {
      const int64_t u = random_below(model_.num_nodes), v = random_below(model_.num_nodes);
      expect(graph_.connected(u, v) == (least[u] == least[v]), "connected");
    }
    expect(graph_.num_edges() == static_cast<int64_t>(model_.edges.size()), "num_edges");
    expect(graph_.recompute_unions() == model_.unions, "recompute_unions is the work of recompute-on-delete");
    expect(graph_.unions() <= model_.unions, "more unions than recompute-on-delete has");
  }

  /// Of the live edges, the id that is greatest by `measure`.
  int64_t greatest(const std::function<int64_t(int64_t, const Model::Edge&)>& measure) const {
    int64_t best = -1, most = std::numeric_limits<int64_t>::min();
    for (const auto& [id, edge] : model_.edges) {
      if (const int64_t value = measure(id, edge); best < 0 || value > most) best = id, most = value;
    }
    return best;
  }

  int64_t num_edges() const { return static_cast<int64_t>(model_.edges.size()); }
  const PredictedTimeline& graph() const { return graph_; }

 private:
  PredictedTimeline graph_;
  Model model_;
  int64_t clock_ = 0, next_id_ = 0;
};

/// Each step of time some edges end and one begins, which lives for 200 steps on average; nothing is redundant.
struct Stream {
  static constexpr int inserts = 4096;
  struct Event {
    int edge;
    bool erase;
  };
  Stream() : inserted(inserts), erased(inserts) {
    std::mt19937 bits(1);
    std::exponential_distribution<double> life(1 / 200.0);
    std::multimap<int64_t, int> ends;
    const auto end_first = [&] {
      erased[ends.begin()->second] = static_cast<int64_t>(events.size());
      events.push_back({ends.begin()->second, true});
      ends.erase(ends.begin());
    };
    for (int i = 0; i < inserts; ++i) {
      while (!ends.empty() && ends.begin()->first <= i) end_first();
      inserted[i] = static_cast<int64_t>(events.size());
      events.push_back({i, false});
      ends.emplace(i + 1 + static_cast<int64_t>(life(bits)), i);
    }
    while (!ends.empty()) end_first();
  }
  std::vector<Event> events;
  std::vector<int64_t> inserted, erased;  // by edge, in events
};

}  // namespace anabranch::testing
