// PredictedTimeline and its union-find: every answer against recomputation after every event, the work against what
// recompute-on-delete would do for the same calls, and the work against the error of the predictions.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "timeline_model.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

void check_union_find() {
  context = "RollbackUnionFind";
  RollbackUnionFind graph(40);
  std::vector<std::pair<int64_t, std::vector<int64_t>>> past;  // joins, and a root of every vertex then
  const auto roots = [&] {
    std::vector<int64_t> all(40);
    for (int64_t v = 0; v < 40; ++v) all[v] = graph.find(v);
    return all;
  };
  for (int i = 0; i < 4000; ++i) {
    if (past.empty() || random_below(3) > 0) {
      past.emplace_back(graph.num_joins(), roots());
      const int64_t u = random_below(40), v = random_below(40);
      const bool apart = !graph.connected(u, v);
      expect(graph.unite(u, v) == apart && graph.connected(u, v), "unite");
      expect(graph.num_components() == 40 - past.back().first - apart, "num_components");
    } else {
      const int64_t to = random_below(static_cast<int64_t>(past.size()));
      graph.rollback(past[to].first);
      expect(roots() == past[to].second && graph.num_joins() == past[to].first, "rollback");
      past.resize(to);
    }
  }
}

/// Events of every kind and predictions of every quality; queries after every event, or after some.
void check_random_events() {
  for (const int64_t num_nodes : {1, 2, 5, 30, 200}) {
    for (const int64_t noise : {0, 1, 30, 1000}) {
      for (const int64_t quiet : {1, 4}) {
        context = "random events on " + std::to_string(num_nodes) + " vertices, noise " + std::to_string(noise) +
                  ", a query in " + std::to_string(quiet);
        Pair both(num_nodes);
        std::multimap<int64_t, int64_t> ends;  // clock -> id
        for (int i = 0; i < 500; ++i) {
          const int64_t now = both.graph().clock();
          if (!ends.empty() && ends.begin()->first <= now + 1) {
            both.erase(ends.begin()->second);
            ends.erase(ends.begin());
          } else if (random_below(20) == 0) {
            both.advance(random_below(6));
          } else {
            const int64_t lifetime = 1 + random_below(random_below(2) ? 10 : 120);
            const int64_t predicted = std::max<int64_t>(0, lifetime + random_below(2 * noise + 1) - noise);
            const int64_t u = random_below(num_nodes), v = random_below(8) ? random_below(num_nodes) : u;
            ends.emplace(now + 1 + lifetime, both.insert(u, v, predicted));
          }
          if (i % quiet == 0) both.check_answers();
        }
        while (both.num_edges() > 0) {
          both.erase(both.greatest([](int64_t, const Model::Edge& edge) { return edge.expiry ^ edge.u; }));
          both.check_answers();
        }
      }
    }
  }
}

/// Who makes the predictions and chooses what goes knows the algorithm: never more work than recompute-on-delete.
void check_adversaries() {
  constexpr int64_t forever = std::numeric_limits<int64_t>::max();
  const std::pair<const char*, std::function<int64_t(int)>> predictions[] = {
      {"at once", [](int) { return int64_t{0}; }},
      {"forever", [](int) { return forever; }},
      {"later ones go first", [](int i) { return int64_t{2000} - 2 * i; }},
      {"powers of two", [](int i) { return int64_t{1} << i % 63; }},
  };
  const std::pair<const char*, std::function<int64_t(int64_t, const Model::Edge&)>> victims[] = {
      {"oldest", [](int64_t id, const Model::Edge&) { return -id; }},
      {"newest", [](int64_t id, const Model::Edge&) { return id; }},
      {"last predicted", [](int64_t, const Model::Edge& edge) { return edge.expiry; }},
      {"first predicted", [](int64_t, const Model::Edge& edge) { return -edge.expiry; }},
  };
  for (const auto& [prediction_name, prediction] : predictions) {
    for (const auto& [victim_name, victim] : victims) {
      context = std::string("predicted: ") + prediction_name + ", erased: " + victim_name;
      Pair both(60);
      for (int i = 0; i < 300; ++i) {
        both.insert(random_below(60), random_below(60), prediction(i));
        both.check_answers();
        if (both.num_edges() < 40) continue;
        both.erase(both.greatest(victim));
        both.check_answers();
      }
      while (both.num_edges() > 0) {
        both.erase(both.greatest(victim));
        both.check_answers();
      }
    }
  }
}

/// What joins nothing leaves nothing behind, and no work is done for it.
void check_redundant_edges() {
  context = "redundant edges";
  Pair both(3);
  const int64_t first = both.insert(0, 1, 5);
  both.insert(1, 2, 100'000);
  both.check_answers();
  const int64_t kept = both.insert(0, 2, 7);
  for (int i = 0; i < 2000; ++i) {
    const int64_t edge = both.insert(i % 3, i % 2, 1);
    both.check_answers();
    both.erase(edge);
    both.check_answers();
  }
  expect(both.graph().rebuilds() == 0 && both.graph().unions() == 2003, "a redundant edge costs one union");
  both.erase(first);
  both.check_answers();
  expect(both.graph().rebuilds() == 1 && both.graph().unions() == 2005, "the path is redone without dead edges");
  both.erase(kept);
  both.check_answers();
  expect(both.graph().num_edges() == 1, "one edge is left");
}

void check_edges_of_the_domain() {
  context = "empty, and the ends of time";
  PredictedTimeline none(0);
  expect(none.num_components() == 0 && !none.next_expiry() && none.clock() == 0, "no vertices");
  PredictedTimeline graph(3);
  expect(graph.num_components() == 3 && graph.unions() == 0, "no edges");
  const int64_t long_lived = graph.insert(0, 1, std::numeric_limits<int64_t>::max());
  const int64_t at_once = graph.insert(1, 2, 0);
  expect(graph.next_expiry() == std::pair<int64_t, int64_t>(2, at_once), "next_expiry");
  expect(graph.connected(0, 2), "a prediction erases nothing");
  graph.advance((int64_t{1} << 62) - graph.clock());
  expect(graph.connected(0, 2), "time erases nothing");
  graph.erase(graph.insert(0, 1, 1));
  graph.erase(long_lived);
  expect(graph.connected(1, 2) && graph.num_components() == 2, "after the end of time");
  expect(graph.next_expiry()->first > graph.clock(), "what stays is predicted anew");
  const int64_t clock = graph.clock();
  expect_refusal("PredictedTimeline: num_nodes is -1, must be from 0 to 2^48; give the number of vertices",
                 [] { PredictedTimeline bad(-1); });
  expect_refusal("PredictedTimeline.insert: v is 3, must be from 0 to 2 (num_nodes is 3); number the vertices from 0",
                 [&] { graph.insert(0, 3, 1); });
  expect_refusal(
      "PredictedTimeline.connected: u is -1, must be from 0 to 2 (num_nodes is 3); number the vertices from 0",
      [&] { graph.connected(-1, 0); });
  expect_refusal(
      "PredictedTimeline.insert: predicted_lifetime is -5, must not be negative; give the number of events that the "
      "edge is expected to live",
      [&] { graph.insert(0, 1, -5); });
  expect_refusal("PredictedTimeline.erase: edge is 0, must be the id of a live edge; use what insert returned, once",
                 [&] { graph.erase(long_lived); });
  expect_refusal(
      "PredictedTimeline.advance: events is -1, must be from 0 to 2^62 with the events so far; time does not go back",
      [&] { graph.advance(-1); });
  expect(graph.clock() == clock && graph.num_edges() == 1 && graph.num_components() == 2, "a refusal changes nothing");
}

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

/// Work grows with the error of the predictions, from the logarithm of the lifetime, and stays below the backstop.
void check_work_against_error() {
  const Stream stream;
  std::puts("sd (steps)  l1 error/insertion  unions/insertion  recompute-on-delete");
  double before = 0;
  for (const double sd : {0, 1, 4, 16, 64, 256, 1024}) {
    context = "noise " + std::to_string(sd);
    std::mt19937 bits(2);
    std::normal_distribution<double> normal;
    PredictedTimeline graph(2 * Stream::inserts);
    std::vector<int64_t> ids(Stream::inserts);
    double error = 0;
    int64_t alive = 0;
    for (const auto& [edge, erase] : stream.events) {
      if (erase) {
        graph.erase(ids[edge]);
      } else {
        const int64_t lifetime = stream.erased[edge] - stream.inserted[edge];
        // A step of time is about two events.
        const int64_t predicted = std::max<int64_t>(0, lifetime + std::llround(2 * sd * normal(bits)));
        error += std::abs(static_cast<double>(predicted - lifetime)) / 2;
        ids[edge] = graph.insert(2 * edge, 2 * edge + 1, predicted);
      }
      alive += erase ? -1 : 1;
      expect(graph.num_components() == graph.num_nodes() - alive, "num_components");
      expect(graph.unions() <= graph.recompute_unions(), "more unions than recompute-on-delete has");
    }
    const double unions = static_cast<double>(graph.unions()) / Stream::inserts;
    const double recompute = static_cast<double>(graph.recompute_unions()) / Stream::inserts;
    std::printf("%10g  %18.1f  %16.1f  %19.1f\n", sd, error / Stream::inserts, unions, recompute);
    expect(unions > before, "work grows with the error");
    // log2 of 400 events is 8.6; at most two nodes for each level, most of them left out.
    if (sd == 0) expect(unions < 10, "the work of right predictions is logarithmic");
    expect(unions < 0.6 * recompute, "predictions are worth something at every error");
    before = unions;
  }
}

}  // namespace

int main() {
  check_union_find();
  check_random_events();
  check_adversaries();
  check_redundant_edges();
  check_edges_of_the_domain();
  check_work_against_error();
  std::puts("predicted_timeline: ok");
}
