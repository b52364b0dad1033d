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
  using State = std::vector<std::pair<int64_t, int64_t>>;  // root and size of every vertex's component
  const auto state = [&] {
    State all(40);
    for (int64_t v = 0; v < 40; ++v) all[v] = {graph.find(v), graph.component_size(v)};
    return all;
  };
  std::vector<std::pair<int64_t, State>> past;  // by number of joins
  for (int i = 0; i < 4000; ++i) {
    if (past.empty() || random_below(3) > 0) {
      past.emplace_back(graph.num_joins(), state());
      const auto& before = past.back().second;
      const int64_t u = random_below(40), v = random_below(40);
      const auto [larger, smaller] =
          std::minmax(before[u], before[v], [](auto a, auto b) { return a.second > b.second; });
      const bool apart = larger.first != smaller.first;
      expect(graph.unite(u, v) == apart && graph.connected(u, v), "unite");
      expect(graph.num_components() == 40 - past.back().first - apart, "num_components");
      expect(graph.component_size(u) == larger.second + (apart ? smaller.second : 0), "component_size");
      expect(larger.second == smaller.second || graph.find(u) == larger.first, "the larger one's root stays");
    } else {
      const int64_t to = random_below(static_cast<int64_t>(past.size()));
      graph.rollback(past[to].first);
      expect(state() == past[to].second && graph.num_joins() == past[to].first, "rollback");
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
      {"first predicted", [](int64_t, const Model::Edge& edge) { return ~edge.expiry; }},
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
  Pair both(4);
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

/// Erased edges are forgotten below edges that go on, which are then found where they are.
void check_dead_edges() {
  context = "dead edges below live ones";
  Pair both(4);
  both.insert(1, 2, 900);
  std::vector<int64_t> loops;
  for (int i = 0; i < 200; ++i) loops.push_back(both.insert(1, 1, 900));
  const int64_t below = both.insert(0, 1, 900);
  both.insert(2, 3, 900);
  both.check_answers();
  for (const int64_t edge : loops) both.erase(edge);
  both.check_answers();
  both.erase(below);
  both.check_answers();
  expect(both.graph().unions() == 205 && both.graph().rebuilds() == 1, "two edges are redone");
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

/// Nodes of the tree of [first, last) in which [since, expiry) is permanent: the one that holds `time`.
std::pair<int64_t, int64_t> permanent_node(int64_t first, int64_t last, int64_t since, int64_t expiry, int64_t time) {
  if (since <= first && last <= expiry) return {first, last};
  const int64_t middle = first + (last - first) / 2;
  return time < middle ? permanent_node(first, middle, since, expiry, time)
                       : permanent_node(middle, last, since, expiry, time);
}

/// With right predictions the work is one union for an insertion and one for each node of the offline tree in which an
/// edge is permanent, of those that hold a time at which an edge went.
void check_work_of_right_predictions() {
  context = "right predictions";
  const Stream stream;
  const auto end_of_time = static_cast<int64_t>(2 * std::bit_ceil(stream.events.size()));
  PredictedTimeline graph(2 * Stream::inserts);
  std::vector<int64_t> ids(Stream::inserts);
  std::map<int, std::pair<int64_t, int64_t>> nodes;  // of the live edges, by edge
  int64_t unions = 0;
  for (const auto& [edge, erase] : stream.events) {
    if (erase) {
      graph.erase(ids[edge]);
      nodes.erase(edge);
      for (auto& [other, node] : nodes) {
        const auto now =
            permanent_node(0, end_of_time, stream.inserted[other] + 1, stream.erased[other] + 1, graph.clock());
        unions += now != node;
        node = now;
      }
    } else {
      ids[edge] = graph.insert(2 * edge, 2 * edge + 1, stream.erased[edge] - stream.inserted[edge]);
      nodes[edge] = {};
      ++unions;
    }
    expect(graph.num_components() == graph.num_nodes() - static_cast<int64_t>(nodes.size()), "num_components");
    expect(graph.unions() == unions, "the unions of the offline tree");
  }
}

/// Unions for an insertion, by the timeline and by recompute-on-delete, where `predict` makes a lifetime of the true
/// one.
template <class Predict>
std::pair<double, double> work(const Stream& stream, Predict predict) {
  PredictedTimeline graph(2 * Stream::inserts);
  std::vector<int64_t> ids(Stream::inserts);
  int64_t alive = 0;
  for (const auto& [edge, erase] : stream.events) {
    if (erase) {
      graph.erase(ids[edge]);
    } else {
      ids[edge] = graph.insert(2 * edge, 2 * edge + 1, predict(stream.erased[edge] - stream.inserted[edge]));
    }
    alive += erase ? -1 : 1;
    expect(graph.num_components() == graph.num_nodes() - alive, "num_components");
    expect(graph.unions() <= graph.recompute_unions(), "more unions than recompute-on-delete has");
  }
  return {static_cast<double>(graph.unions()) / Stream::inserts,
          static_cast<double>(graph.recompute_unions()) / Stream::inserts};
}

/// Work grows with the error of the predictions and stays below the backstop.
void check_work_against_error() {
  const Stream stream;
  std::puts("sd (steps)  l1 error/insertion  unions/insertion  recompute-on-delete");
  double before = 0;
  for (const double sd : {0, 1, 4, 16, 64, 256, 1024}) {
    context = "noise " + std::to_string(sd);
    std::mt19937 bits(2);
    std::normal_distribution<double> normal;
    double error = 0;
    const auto [unions, recompute] = work(stream, [&](int64_t lifetime) {
      // A step of time is about two events.
      const int64_t predicted = std::max<int64_t>(0, lifetime + std::llround(2 * sd * normal(bits)));
      error += std::abs(static_cast<double>(predicted - lifetime)) / 2;
      return predicted;
    });
    std::printf("%10g  %18.1f  %16.1f  %19.1f\n", sd, error / Stream::inserts, unions, recompute);
    expect(unions > before, "work grows with the error");
    expect(unions < 0.6 * recompute, "predictions are worth something at every error");
    before = unions;
  }
}

/// Edges that outlive their predictions are given new ones that are worth something.
void check_work_of_late_edges() {
  const Stream stream;
  for (const auto& [factor, most] : {std::pair(0.0, 0.56), std::pair(0.5, 0.43), std::pair(0.9, 0.13)}) {
    context = "lifetimes predicted as " + std::to_string(factor) + " of the true ones";
    const auto [unions, recompute] =
        work(stream, [&](int64_t lifetime) { return static_cast<int64_t>(factor * static_cast<double>(lifetime)); });
    expect(unions < most * recompute, "unions: " + std::to_string(unions));
  }
}

}  // namespace

int main() {
  check_union_find();
  check_random_events();
  check_adversaries();
  check_redundant_edges();
  check_dead_edges();
  check_edges_of_the_domain();
  check_work_of_right_predictions();
  check_work_against_error();
  check_work_of_late_edges();
  std::puts("predicted_timeline: ok");
}
